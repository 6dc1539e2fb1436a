"""The jobs file: what it multiplies out to, what it groups, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.batch import read_jobs
from pipeline.errors import PipelineError, UsageError
from pipeline.job import Job
from pipeline.modelfile import Overrides
from pipeline.tuning import Tuning

Write = Callable[[str], Path]


def test_models_times_adapters(write: Write, tmp_path: Path) -> None:
    """Each model with each adapter is a job; quantizations and targets stay together in it, and defaults fill in."""
    for name in ("a", "b", "mine"):
        (tmp_path / name).mkdir()
    jobs = read_jobs(
        write(
            '[defaults]\nquants = ["q4_k_m", "Q8_0"]\nto = ["local", "ollama"]\nproof = "none"\n'
            '[[job]]\nmodels = ["qwen", "./mine"]\nadapters = ["a", "./b"]\nproof = "quick"\n'
            '[[job]]\nmodel = "org/name@v2"\nquants = "F16"\nto = "local"\nlatest = false\ntags = "v1"\n'
        )
    )
    both = {"quants": ("Q4_K_M", "Q8_0"), "targets": ("local", "ollama"), "proof": "quick"}
    assert jobs == (
        *(
            Job(model, adapter=tmp_path / adapter, **both)  # type: ignore[arg-type]
            for model in ("qwen", str(tmp_path / "mine"))
            for adapter in ("a", "b")
        ),
        Job("org/name@v2", ("F16",), targets=("local",), proof="none", latest=False, tags=("v1",)),
    )


def test_the_modelfile(write: Write) -> None:
    """The same table as in models.toml: a parameter may be a list, and the context is one of them."""
    text = '[[job]]\nmodel = "demo"\nmodelfile.system = "Be brief."\n'
    [job] = read_jobs(write(text + 'modelfile.parameters = { num_ctx = 256, stop = ["a", "b"] }\n'))
    assert job.overrides == Overrides((("num_ctx", 256), ("stop", "a"), ("stop", "b")), system="Be brief.")


def test_one_model_is_read_once(write: Write) -> None:
    """Jobs that differ in quantizations alone, or in targets alone, are one; others are not."""
    row = '[[job]]\nmodel = "demo"\n'
    jobs = read_jobs(
        write(
            row + 'quants = "Q4_0"\n' + row + 'quants = ["Q8_0", "Q4_0"]\n' + row + 'quants = ["Q4_0", "Q8_0"]\n'
            'to = "ollama"\n' + row + 'quants = "Q6_K"\nmodelfile.system = "Be brief."\nname = "brief"\n'
        )
    )
    assert [(job.quants, job.targets) for job in jobs] == [
        (("Q4_0", "Q8_0"), ("local", "ollama")),
        (("Q6_K",), ("local",)),
    ]


def test_a_recipe_of_ones_own(write: Write, tmp_path: Path) -> None:
    """A recipe's file says the types, and the quantization where nobody else does; another recipe is another job."""
    (tmp_path / "mine.toml").write_text('recipe = "Q4_K_M"\noutput-type = "Q8_0"\n')
    row = '[[job]]\nmodel = "demo"\n'
    with_recipe, without = read_jobs(
        write(f'{row}recipe = "mine.toml"\nname = "a"\n{row}quants = "Q4_K_M"\nname = "a"\n')
    )
    assert with_recipe.quants == without.quants == ("Q4_K_M",)
    assert with_recipe.tuning.options.output_type == "Q8_0"
    assert without.tuning == Tuning()


BAD = {
    "no toml": ("[[job", "is not TOML"),
    "no job": ("[defaults]\nquants = []\n", "quants"),
    "nothing": ("", "there is no job"),
    "unknown table": ("[default]\n", "did you mean defaults"),
    "unknown key": ('[[job]]\nmodel = "a"\nquant = "Q4_0"\n', "did you mean quants"),
    "no model": ('[[job]]\nquants = "Q4_0"\n', "names no model"),
    "two ways": ('[[job]]\nmodel = "a"\nmodels = ["b"]\n', "both model and models"),
    "bad quant": ('[[job]]\nmodel = "a"\nquants = "Q4_X"\n', "is no quantization"),
    "number for text": ("[[job]]\nmodel = 5\n", "is not a text"),
    "text for switch": ('[[job]]\nmodel = "a"\nlatest = "no"\n', "is not a switch"),
    "text for number": ('[[job]]\nmodel = "a"\nthreads = true\n', "is not a number"),
    "a job for a table": ('job = "a"\n', "there is no job"),
    "a text for a job": ('job = ["a"]\n', "is not a table"),
    "one name for two": ('[[job]]\nmodels = ["a", "b"]\nname = "c"\n', "one name to several"),
    "no adapter": ('[[job]]\nmodel = "a"\nadapter = "./none"\n', "is not a folder"),
    "nobody's adapter": ('[[job]]\nmodel = "a"\nadapter = "~nobody-of-this-name/x"\n', "is not a folder"),
    "nobody's imatrix": ('[[job]]\nmodel = "a"\nimatrix = "~nobody-of-this-name/x"\n', "nobody-of-this-name"),
    "no imatrix": ('[[job]]\nmodel = "a"\nimatrix = "none.gguf"\n', "none.gguf"),
    "no recipe": ('[[job]]\nmodel = "a"\nrecipe = "none.toml"\n', "none.toml"),
    "bad parameter": ('[[job]]\nmodel = "a"\nmodelfile.parameters = { temperatur = 1 }\n', "temperatur"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_mistake_is_told_with_its_place(what: str, write: Write) -> None:
    """Every mistake is wrong usage, and the message says what it is."""
    text, message = BAD[what]
    with pytest.raises(PipelineError, match=message):
        read_jobs(write(text))


def test_a_missing_file(tmp_path: Path) -> None:
    """A file that is not there is wrong usage."""
    with pytest.raises(UsageError, match="cannot be read"):
        read_jobs(tmp_path / "none.toml")
