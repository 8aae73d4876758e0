"""Tables are medians, spreads and ratios of what the CSV says."""

from harness import tables
from harness.results import Cell, Run

PROMPT, DECODE = "prompt=256", "prompt=256 batch=1"


def _run() -> Run:
    run = Run("compare")
    for repeat, (ours, theirs) in enumerate([(300, 100), (330, 150), (360, 100)], start=1):
        common = {"model": "m", "repeat": repeat}
        run.add("llmint8", "prefill", ours, "tokens/s", setting=PROMPT, **common)
        run.add("peer", "prefill", theirs, "tokens/s", setting=PROMPT, **common)
        run.add("llmint8", "decode", 20 + repeat, "tokens/s", setting=DECODE, **common)
        run.add("llmint8", "weights read", 10 * repeat, "GB/s", setting=DECODE, **common)
        run.add("llmint8", "read loop", 40, "GB/s", **common)
    run.add("absent", "failed", None, "", model="m", repeat=1, note="cannot be installed: pip says no")
    return run


def test_cells_are_medians_with_half_the_range_and_ratios_of_each_round() -> None:
    figures = tables.Figures(_run().rows)
    assert figures.cell("llmint8", "prefill", PROMPT) == "330 ± 30"
    assert figures.compared("llmint8", "prefill", PROMPT) == "330 ± 30"
    assert figures.compared("peer", "prefill", PROMPT) == "100 ± 25 (3.00×)"  # of 3.0, 2.2 and 3.6
    assert figures.cell("peer", "decode", DECODE) == "-"
    assert figures.ratio("peer", "decode", DECODE) is None


def test_the_main_table_has_every_system_and_says_why_one_did_not_run() -> None:
    ours, peer, absent = tables.speed(tables.Figures(_run().rows))
    assert list(ours.values())[:2] == ["**llmint8**", "330 ± 30"]
    assert ours["GB/s (of what a loop reads)"] == "20.0 ± 10.0 (50%)"
    assert peer["decode, tokens/s"] == "-"
    assert list(absent.values())[:2] == ["absent", "could not run: cannot be installed: pip says no"]
    assert set(list(absent.values())[2:]) == {""}


def test_energy_is_what_was_counted_or_not_available() -> None:
    run = _run()
    run.add("llmint8", "energy", None, "J/token", model="m", setting=DECODE, note="not available")
    assert "not available" in tables.energy(tables.Figures(run.rows))
    run.add("llmint8", "energy", 1.25, "J/token", model="m", setting=DECODE)
    assert tables.energy(tables.Figures(run.rows)) == f"Energy of a token: llmint8 1.25 J ({DECODE})."


def test_a_figure_that_a_system_cannot_give_is_explained() -> None:
    run = _run()
    run.add("peer", "KL", None, "", model="m", setting="tokens=9", note="it has no logits")
    assert tables.Figures(run.rows).missing() == "peer has no KL: it has no logits."


def test_memory_is_in_megabytes() -> None:
    run = Run("memory")
    for figure, value in (("weights", 1_373_000_000), ("peak anonymous", 1_500_000_000), ("load", 2.5)):
        run.add("llmint8", figure, value, "B", model="m", repeat=1)
    (row,) = tables.memory(tables.Figures(run.rows))
    assert row["weights, MB"] == "1373"
    assert row["peak while loading, MB"] == "1500"
    assert row["loaded, s"] == "2.50"
    assert "peak reserved on the GPU, MB" not in row


def test_what_was_added_as_a_table_is_printed_with_its_digits() -> None:
    run = Run("accuracy")
    rows = [
        {"scheme": "a", "perplexity": Cell(14.8, 3), "top-1": Cell(0.97, 1, "%")},
        {"scheme": "b", "perplexity": Cell(14.774, 3)},
    ]
    run.add_table(rows, model="m")
    assert tables.wide(run.rows) == [
        {"": "a", "perplexity": "14.800", "top-1": "97%"},
        {"": "b", "perplexity": "14.774", "top-1": ""},
    ]
    assert tables.markdown(tables.wide(run.rows)).splitlines() == [
        "| | perplexity | top-1 |",
        "|---|---:|---:|",
        "| a | 14.800 | 97% |",
        "| b | 14.774 | |",
    ]


def test_the_models_of_one_table_have_columns_of_their_own() -> None:
    run = Run("random_models")
    for model, error in (("gpt2", 0.0231), ("opt", 0.0233)):
        run.add_table([{"scheme": "a", "error": Cell(error, 4)}], model=model)
    assert tables.wide(run.rows) == [{"": "a", "gpt2: error": "0.0231", "opt: error": "0.0233"}]


def test_growth_is_a_row_a_size_in_the_order_of_the_sizes() -> None:
    run = Run("growth")
    for prompt, ours, theirs in (("256", 600, 300), ("64", 400, 100)):
        for system, value in (("llmint8", ours), ("peer", theirs)):
            run.add(system, "prefill", value, "tokens/s", model="m", setting=f"prompt={prompt}")
    run.add("limit", "read loop", 40, "GB/s", model="m")
    assert tables.growth(run.rows) == [
        {"": "prefill, m, prompt=64", "llmint8": "400", "peer": "100 (4.00×)"},
        {"": "prefill, m, prompt=256", "llmint8": "600", "peer": "300 (2.00×)"},
    ]
