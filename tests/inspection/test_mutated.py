"""Hundreds of damaged data sets: each is inspected, or refused by its name; no traceback."""

import re

from llava_mole.errors import ConfigError, DataError
from tests.data import mutations
from tests.inspection.sets import all_findings, look

SEEDS = range(1000, 1025)


def look_or_refuse(spec, folder, **options):
    """The inspection, or the message of why there is none."""
    try:
        return look(spec, folder, **options)
    except (DataError, ConfigError) as error:
        return str(error)


def test_damage_is_found_and_named(tmp_path):
    root = mutations.write_world(tmp_path)
    report = tmp_path / "out.json"
    looked_at = with_errors = 0
    for mutant in mutations.mutants(root, SEEDS):
        looked_at += 1
        inspection = look_or_refuse(mutant.spec, tmp_path, json_file=report)
        if isinstance(inspection, str):
            with_errors += 1
            assert any(name in inspection for name in mutant.files), mutant.what
            continue
        with_errors += inspection.exit_code
        text = report.read_text()
        assert mutations.SECRET not in text, mutant.what
        for finding in all_findings(report):
            assert any(name in finding.where for name in mutant.files), f"{mutant.what}: {finding}"
            assert re.search(r":\d+$", finding.where), f"{mutant.what}: {finding}"
    assert looked_at >= 300
    assert with_errors > looked_at / 3


def test_damaged_benchmarks_are_told_too(tmp_path):
    root = mutations.write_world(tmp_path)
    form = mutations.FORMATS["llava_list"]
    files = form.write([form.record(n) for n in range(mutations.RECORDS)], root / "whole")
    spec = mutations.spec_of("llava_list", root / "whole", files, root)
    for mutant in mutations.mutants(root, range(60), ["mmbench_tsv"]):
        inspection = look_or_refuse(spec, tmp_path, against=[mutant.spec.path])
        if isinstance(inspection, str):
            assert "mmbench_tsv" in inspection, mutant.what
            continue
        for finding in inspection.findings.first.get("benchmark-row", []):
            assert "mmbench_tsv.tsv:" in finding.where, mutant.what
