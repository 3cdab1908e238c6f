"""check, hint, progress: right versions pass in any style, wrong ones get their sentence, and nothing gets out of the cell."""

import dataclasses
import html
import json
import re
import time
import types

import numpy as np
import pytest
import torch

import minidiff as md
from minidiff.course import Case, Law, Mistake, check, examine, find, hint, progress, tasks
from minidiff.course.compare import difference
from minidiff.course.proof import verdict, verify

ADD = find("01.1")


# ---- the checks are checked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", list(tasks()))
def test_solution_passes_stub_fails_and_every_mistake_is_told_apart(id):
    told = verdict(find(id))
    assert told.failures == () and told.solution and not told.stub and told.caught == told.mistakes >= 3


def test_every_chapter_with_exercises_has_three_to_five():
    chapters = [id[:2] for id in tasks()]
    assert chapters and all(3 <= chapters.count(chapter) <= 5 for chapter in chapters)


def test_verify_speaks_of_the_tasks_it_was_asked_for():
    assert [v.id for v in verify(lambda id: id == "01.4", progress=False)] == ["01.4"]


@pytest.mark.parametrize("change, complaint", [
    ({"solution": lambda x0, eps, level: x0}, "the solution is refused"),
    ({"mistakes": (*ADD.mistakes, Mistake("none", md.add_noise))}, '"none" got: right'),
    ({"mistakes": (*ADD.mistakes, Mistake("the same", ADD.mistakes[1].version))}, '"the same" got: alpha and sigma'),
    ({"mistakes": (*ADD.mistakes, ADD.mistakes[0])}, "two mistakes share a sentence"),
], ids=["wrong solution", "a mistake that is none", "one mistake twice", "one sentence twice"])  # fmt: skip
def test_verify_notices_a_bad_task(change, complaint):
    assert any(complaint in told for told in verdict(dataclasses.replace(ADD, **change)).failures)


def test_a_check_that_accepts_everything_is_noticed():
    lax = dataclasses.replace(ADD, ask=lambda f, *args: torch.zeros(3), cases=(Case("anything", ADD.cases[0].args),))
    told = verdict(lax)
    assert told.stub and told.caught == 0


def test_a_memory_that_outlives_its_walk_is_told():
    def lms(denoise, x, levels, order=4, past=[]):  # noqa: B006  the mistake in question
        for state in md.lms(denoise, x + 1e-3 * len(past), levels, order):
            past.append(state)
            yield state

    report = check("07.3", lms)
    assert not report and "outlives it" in str(report)


def test_a_task_needs_mistakes_and_hints():
    with pytest.raises(ValueError, match="1 mistakes"):
        dataclasses.replace(ADD, mistakes=ADD.mistakes[:1])
    with pytest.raises(ValueError, match='no task "99.9"'):
        find("99.9")


# ---- right, in another style ----------------------------------------------------------------------------------------------


def in_loops(x0, eps, level):
    out = torch.empty(x0.shape)
    alphas, sigmas = (torch.as_tensor(v).expand(len(x0)) for v in (level.alpha, level.sigma))
    for i in range(len(x0)):
        out[i] = float(alphas[i]) * x0[i] + float(sigmas[i]) * eps[i]
    return out


def by_einsum(x0, eps, level):
    alpha, sigma = (torch.as_tensor(v, dtype=x0.dtype).expand(len(x0)) for v in (level.alpha, level.sigma))
    return torch.einsum("b...,b->b...", x0, alpha) + torch.einsum("b...,b->b...", eps, sigma)


def not_contiguous(x0, eps, level):
    return md.add_noise(x0.transpose(0, -1), eps.transpose(0, -1), dataclasses.replace(level, alpha=1.0, sigma=0.0)).transpose(
        0, -1) * torch.as_tensor(level.like(x0)[0]) + eps * level.like(x0)[1]  # fmt: skip


def in_numpy_and_back(x0, eps, level):
    alpha, sigma = (np.asarray(v).reshape(-1, *[1] * (x0.ndim - 1)) for v in (level.alpha, level.sigma))
    return torch.from_numpy(alpha * x0.numpy() + sigma * eps.numpy()).float()


@pytest.mark.parametrize("version", [in_loops, by_einsum, not_contiguous, in_numpy_and_back])
def test_another_style_passes(version):
    assert check("01.1", version), check("01.1", version)


def test_a_schedule_or_a_pair_or_a_list_will_do():
    for wrap in (tuple, list, lambda pair: md.Schedule(*pair, torch.arange(len(pair[0])))):
        def by_hand(T=1000, wrap=wrap):
            schedule = md.Schedule.cosine(T)
            return wrap((schedule.alpha.clone(), schedule.sigma.clone()))
        assert check("01.3", by_hand)  # fmt: skip


def test_float_and_integer_timesteps_are_asked():
    for t in (400, 400.0, torch.tensor([400, 20]), torch.tensor([400.0, 20.5])):
        x, eps = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
        level = md.Schedule.linear().at(t)
        assert difference(in_loops(x, eps, level), md.add_noise(x, eps, level), 1e-5) is None


# ---- whatever a learner's function does -------------------------------------------------------------------------------------


def endless(x0, eps, level):
    while True:
        pass


def leaves(x0, eps, level):
    raise SystemExit


def unprintable(x0, eps, level):
    class Nasty:
        def __eq__(self, other):
            raise RuntimeError("no")

        __len__ = __getattr__ = __eq__

    return Nasty()


def in_place(x0, eps, level):
    x0 *= level.like(x0)[0]
    return x0.add_(level.like(x0)[1] * eps)


@pytest.mark.parametrize("version, says", [
    (lambda x0, eps, level: 1 / 0, "raised ZeroDivisionError"),
    (lambda x0: x0, "takes 1 positional argument but 3 were given"),
    (lambda x0, eps, level: None, "is a `return` missing?"),
    (lambda x0, eps, level: "x", '"x"'),
    (lambda x0, eps, level: (x0, eps), "2 values"),
    (lambda x0, eps, level: x0.numpy(), "of type ndarray"),
    (lambda x0, eps, level: x0[:, :1], "shape"),
    (lambda x0, eps, level: x0.double(), "torch.float64"),
    (lambda x0, eps, level: x0.to("meta"), "cannot be read"),
    (lambda x0, eps, level: x0 / 0 * 0, "NaN"),
    (unprintable, "the answer"),
    (leaves, "raised SystemExit"),
    (in_place, "changed in place"),
    (7, "give the function itself"),
    (None, "give the function itself"),
])  # fmt: skip
def test_nothing_gets_out_and_the_sentence_fits(version, says):
    report = check("01.1", version)
    assert not report and says in repr(report)
    shown = re.sub("</?code>", "", html.unescape(report._repr_html_()))
    assert says.replace("`", "") in shown


def test_an_endless_loop_is_stopped_and_told():
    began = time.perf_counter()
    report = examine(dataclasses.replace(ADD, seconds=0.3), endless)
    assert not report and "loop that never ends" in report.says and time.perf_counter() - began < 5


def test_an_endless_generator_is_an_error_of_one_line():
    report = check("01.1", lambda x0, eps, level: iter(int, 1))
    assert not report and "callable_iterator" in report.says


def test_the_line_that_raised_is_quoted():
    def wrong(x0, eps, level):
        return x0 @ "a"

    assert "at `return x0 @ \"a\"`" in check("01.1", wrong).says


def test_unknown_ids_are_a_report_too():
    assert not check("1.1", md.add_noise) and 'no task "1.1"' in check("1.1", md.add_noise).says


def test_a_check_draws_nothing_from_the_readers_generator():
    torch.manual_seed(5)
    check("01.1", md.add_noise)
    assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(5)))


# ---- what it says -----------------------------------------------------------------------------------------------------------


def test_the_likely_mistake_comes_first_and_the_evidence_after_it():
    lines = check("01.1", lambda x, e, level: level.like(x)[1] * x + level.like(x)[0] * e).says.split("\n")
    assert lines[0].startswith("alpha and sigma have changed places") and lines[1].startswith("(three numbers by hand: ")


def test_an_unknown_mistake_is_told_by_place_and_size():
    report = check("01.1", lambda x0, eps, level: md.add_noise(x0, eps, level) + 0.25)
    assert report.says == "three numbers by hand: the answer at [0, 0] is 1.65, and should be 1.4 (100% of the values are off)"


def test_laws_are_asked_when_all_cases_agree():
    law = Law("never negative", lambda f: float(f(*ADD.cases[0].args).min()) >= 0)
    assert examine(dataclasses.replace(ADD, laws=(law,)), md.add_noise).says.startswith("never negative")


def test_images_are_shown_beside_the_target():
    wrong = check("01.1", lambda x0, eps, level: md.add_noise(x0, eps, level) if len(x0) == 1 else x0)
    assert not wrong and 'src="data:image/png;base64,' in wrong._repr_html_()
    assert "img" not in check("01.1", lambda *a: None)._repr_html_()
    assert check("01.3", lambda T=1000: (torch.ones(T), torch.ones(T)))._repr_html_().count("<img") == 1  # two curves


def test_hints_come_one_at_a_time_and_end_at_the_library(capsys):
    for _ in range(len(ADD.hints) + 1):
        hint("01.1")
    told = capsys.readouterr().out
    assert all(text in told for text in ADD.hints) and told.strip().endswith("write yours") and "forward.py" in told


def test_progress_remembers_what_passed_and_survives_a_bad_file(tmp_path, monkeypatch, capsys):
    file = tmp_path / "deep" / "progress.json"
    monkeypatch.setenv("MINIDIFF_PROGRESS", str(file))
    check("01.1", lambda *args: None)
    assert not file.exists()
    check("01.1", md.add_noise)
    check("01.4", md.predict_x0)
    assert json.loads(file.read_text()) == ["01.1", "01.4"]
    progress()
    assert "■□□■□" in capsys.readouterr().out
    file.write_text("no json")
    assert check("01.1", md.add_noise)
    assert "could not be noted" in capsys.readouterr().out


# ---- comparing ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("got, wanted, told", [
    (1, 1.0, None), (torch.tensor(1.0, dtype=torch.float64), 1, None), (1.1, 1.0, "is 1.1, and should be 1"),
    (md.Estimate(torch.ones(2), torch.zeros(2)), (torch.ones(2), torch.zeros(2)), None),
    ((torch.ones(2), torch.zeros(2)), md.Estimate(torch.ones(2), torch.zeros(2)), None),
    ((torch.ones(2), torch.ones(2)), md.Estimate(torch.ones(2), torch.zeros(2)), "`eps` at [0] is 1, and should be 0"),
    ((torch.ones(2),), (torch.ones(2), torch.ones(2)), "has 1 parts, and should have 2"),
    (md.CLEAN, md.CLEAN, None), (md.CLEAN, md.Level(1, 1.0, 0.0), "`t` is 0, and should be 1"),
    (torch.tensor([float("inf")]), torch.tensor([float("inf")]), None),
    (torch.tensor([1.0, float("nan")]), torch.ones(2), "has NaN in it"),
    ("a", "a", None), ("a", "b", 'is "a", and should be "b"'),
    (types.SimpleNamespace(), torch.ones(2), "of type SimpleNamespace"),
])  # fmt: skip
def test_difference(got, wanted, told):
    found = difference(got, wanted, 1e-6)
    assert found is None if told is None else told in found
