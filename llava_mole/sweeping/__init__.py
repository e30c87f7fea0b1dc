"""`llava-mole sweep`: arms of one recipe, each with the same seeds, compared by claims made before.

    OUT/runs/ARM/seed-N/          one run: its folder is a recipe's output_dir (`run_folder.py`)
    OUT/test_scorings.jsonl       a line for each domain that a run was scored on, on test
    OUT/earlier/N/ARM/seed-N/     a run that `--again` put aside
    OUT/report/dev/               tables, claims, pictures; rebuilt from the runs' folders alone

From the file to the verdicts: `sweep_file.py` reads it, `plan.py` makes its runs, `scheduling.py`
starts them, each a process of its own (`one_run.py`), `answers.py` reads what they answered,
`claims.py` decides, `report.py` writes.
"""

DEVELOPMENT, TEST = "dev", "test"
SPLITS = (DEVELOPMENT, TEST)
"""Held-out questions: those that choices are made on, and those that are only reported."""
