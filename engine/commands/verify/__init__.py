"""The program `verify`: train a result again, and compare all bytes."""
