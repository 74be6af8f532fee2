"""A worker of RunPod's serverless endpoints that runs one job a request: `{"input": {"name": "cat", "task": {…}}}`."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import runpod

JOB = ("/opt/venv/bin/python", "/app/entrypoint.py")
VOLUME = Path("/runpod-volume")
"""Where RunPod mounts an endpoint's network volume."""


def handler(request: dict[str, Any]) -> dict[str, Any]:
    """Run the task in the volume's folder of that name, and return the job's result.json.

    A request with the same name and task goes on where an earlier one stopped. A failed job fails the request.
    """
    name, task = request["input"].get("name"), request["input"].get("task")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,60}", str(name)) or not isinstance(task, dict):
        return {"error": "input.name must be small letters, digits and hyphens, and input.task a task (docs/task.md)"}
    folder = VOLUME / "loras" / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [*JOB, "--task", "-", "--output-dir", str(folder), "--cache-dir", str(VOLUME / "cache")]
    code = subprocess.run(command, input=json.dumps(task), text=True, check=False).returncode
    found = folder / "result.json"
    result = json.loads(found.read_text()) if found.exists() else {}
    if code:  # a job that is refused leaves an earlier one's result alone
        said = result["message"] if result.get("code") == code else "see the log"
        return {"error": f"the job ended with code {code}: {said}"}
    return {"result": result}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
