"""Free memory of a machine and of its control group, read from the system's files."""

import pytest

from engine.job import memory
from tests.support.published_models import GIB


class TestAvailable:
    def machine(self, root, **files):
        for name, text in files.items():
            path = root / name.replace("__", "/").replace("-", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return memory.available_bytes(root)

    MEMINFO = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n"

    def test_of_the_machine(self, tmp_path):
        assert self.machine(tmp_path, proc__meminfo=self.MEMINFO) == (8000000 << 10) - memory.PROGRAM_BYTES

    @pytest.mark.parametrize("limit, expected", [("max\n", 8000000 << 10), (f"{3 * GIB}\n", 2 * GIB)])
    def test_of_the_control_group(self, tmp_path, limit, expected):
        group = {
            "sys__fs__cgroup__memory-max": limit,
            "sys__fs__cgroup__memory-current": f"{3 * GIB // 2}\n",
            "sys__fs__cgroup__memory-stat": f"anon {GIB}\nfile {GIB // 2}\ninactive_file {GIB // 2}\n",
        }
        assert self.machine(tmp_path, proc__meminfo=self.MEMINFO, **group) == expected - memory.PROGRAM_BYTES

    def test_of_an_old_control_group(self, tmp_path):
        group = {
            "sys__fs__cgroup__memory__memory-limit_in_bytes": str(3 * GIB),
            "sys__fs__cgroup__memory__memory-usage_in_bytes": str(4 * GIB),
            "sys__fs__cgroup__memory__memory-stat": "total_inactive_file 4096\n",
        }
        assert self.machine(tmp_path, proc__meminfo=self.MEMINFO, **group) == 0

    def test_hidden(self, tmp_path):
        assert self.machine(tmp_path) is None and memory.most_bytes(tmp_path) is None

    def test_the_most_that_could_be_had_is_more(self, tmp_path):
        self.machine(tmp_path, proc__meminfo=f"{self.MEMINFO}SwapFree: 1000 kB\n")
        assert memory.most_bytes(tmp_path) == 8001000 << 10

    def test_of_this_machine(self):
        assert memory.available_bytes() > 0
