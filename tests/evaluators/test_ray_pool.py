"""The evaluator over Ray: the same scores as in one process, whoever computes them and whoever dies."""

import dataclasses
import functools
import gc
import json
import os
import signal
import sys
import threading
import time
import weakref

import numpy as np
import pytest

ray = pytest.importorskip("ray")

from evaluators.audio_lm.answer_tokens import PromptError
from evaluators.errors import DeviceLostError, PauseError, UserError
from evaluators.evaluator import About, Work, share
from evaluators.fakes import FakeEvaluator
from evaluators.ray_pool import RayPool, connect
from opro import matrix, optimize

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def cluster():
    """Three nodes on this host: the one of this process, and two with a CPU each."""
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8},
    )
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=10**8)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


class Slow(FakeEvaluator):
    """Says where it runs."""

    def __init__(self, folder, delay=0.0):
        super().__init__(delay)
        self.folder = folder

    def score(self, prompts, clips):
        node = ray.get_runtime_context().get_node_id()
        (self.folder / f"{os.getpid()}").write_text(node)
        return super().score(prompts, clips)

    def about(self):
        return About(work=Work(self.forwards // 3, 99.0, 7.0 * self.forwards, 1e9))


class Faulty(FakeEvaluator):
    """Raises what a prompt's text names."""

    def score(self, prompts, clips):
        for prompt in prompts:
            if "PromptError" in prompt.text:
                raise PromptError("these answers cannot be told apart")
            if "lost" in prompt.text:
                raise DeviceLostError("the GPU does not answer")
        return super().score(prompts, clips)


@dataclasses.dataclass(frozen=True)
class Shape:
    tokens: int


class Shaped(FakeEvaluator):
    """One whose key holds the shape of its batches."""

    @property
    def fingerprint(self):
        return f"{self.whole}-{self.shape.tokens}"

    @fingerprint.setter
    def fingerprint(self, value):
        self.whole = value


class Small(Shaped):
    """One whose memory runs out on its first call, as AudioScorer's does: batches are halved, and the key changes."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.shape = folder, Shape(256)

    def score(self, prompts, clips):
        try:
            (self.folder / "first").touch(exist_ok=False)
            self.shape = Shape(128)
        except FileExistsError:
            pass
        table = super().score(prompts, clips)
        shift = np.float32(self.shape.tokens)
        return dataclasses.replace(table, logp=table.logp - shift, logp_top=table.logp_top - shift)


def test_three_nodes_give_the_scores_of_one_process(cluster, seeds, dev_clips, tmp_path):
    pool = RayPool(functools.partial(Slow, tmp_path, 0.001))
    clips, begin = dev_clips[:101], time.perf_counter()
    assert pool.about().work is None  # nobody has started
    while pool.usable < 3:  # a busy machine starts workers slowly
        pool.score(seeds[:1], clips[:9])
    for path in tmp_path.iterdir():
        path.unlink()
    expected = FakeEvaluator().score(seeds, clips)
    for order in (slice(None), slice(None, None, -1)):
        table = pool.score(seeds, clips[order])
        np.testing.assert_array_equal(table.logp, expected.logp[:, order])
        np.testing.assert_array_equal(table.logp_top, expected.logp_top[:, order])
    assert pool.fingerprint == FakeEvaluator().fingerprint
    assert len({path.read_text() for path in tmp_path.iterdir()}) == 3  # every node took part
    work = pool.about().work  # three at once, in the time that passed here
    assert (work.flop, work.rate) == (7.0 * pool.forwards, 3e9)
    assert 0 <= pool.forwards / 3 - work.evals < 3  # what they computed, not what they answered
    assert 0.001 * pool.forwards / 3 < work.seconds < time.perf_counter() - begin


@pytest.mark.slow
def test_released_workers_are_started_again(cluster, seeds, dev_clips):
    pool = RayPool(FakeEvaluator, workers=1)
    expected = FakeEvaluator().score(seeds, dev_clips[:4]).logp
    for _ in range(2):
        np.testing.assert_array_equal(pool.score(seeds, dev_clips[:4]).logp, expected)
        pool.release()
    assert pool.usage.forward == 2 * 4 * len(seeds)


class Shifted(Slow):
    """A checkpoint of its own, whose scores lie `shift` lower; it counts what is released in its worker."""

    def __init__(self, folder, shift):
        super().__init__(folder)
        self.shift, self.fingerprint = np.float32(shift), f"shifted by {shift}"

    def score(self, prompts, clips):
        table = super().score(prompts, clips)
        return dataclasses.replace(table, logp=table.logp - self.shift)

    def release(self):
        with (self.folder / f"released {self.shift:g}").open("a") as file:
            file.write("x")


def test_checkpoints_take_turns_at_the_same_workers_till_the_last_is_released(
    cluster, seeds, dev_clips, tmp_path
):
    """Each of them alone would take the whole cluster, and the next would wait for workers in vain."""
    (shown := tmp_path / "shown").mkdir()
    pools = [RayPool(functools.partial(Shifted, shown, shift)) for shift in (1, 2, 3)]
    share(pools[:2])
    clips = dev_clips[:40]
    expected = FakeEvaluator().score(seeds, clips).logp
    for number in (1, 0, 2, 1, 0):
        if number == 2:
            share(pools)  # one that comes when they work
        got = pools[number].score(seeds, clips).logp
        np.testing.assert_array_equal(got, expected - np.float32(number + 1))
        assert pools[number].fingerprint == f"shifted by {number + 1}"
    pools[0].release()
    pools[2].release()
    np.testing.assert_array_equal(pools[1].score(seeds, clips).logp, expected - np.float32(2))
    said = ray.get([seat.actor.about.remote() for seat in pools[1]._seats])
    assert {fingerprint for fingerprint, _ in said} == {"shifted by 2"}
    for seat in pools[1]._seats:
        if seat.usable:  # as if it had died between two calls, and had been started anew
            ray.get(seat.actor.begin.remote(0, pools[1]._crew.makes))
            seat.process = "of one that died"
    np.testing.assert_array_equal(pools[1].score(seeds, clips).logp, expected - np.float32(2))
    assert pools[1].lost
    names = {path.name for path in shown.iterdir()}
    assert {"released 1", "released 3"} <= names and "released 2" not in names
    assert len([name for name in names if name.isdigit()]) <= 3  # processes
    pools[1].release()
    assert not any("_seats" in vars(pool) for pool in pools)
    assert pools[0].usage.forward == 2 * 40 * len(seeds)


def test_pools_of_other_clusters_and_such_as_have_workers_of_their_own_are_not_shared():
    one = RayPool(FakeEvaluator)
    other = [
        RayPool(FakeEvaluator, "10.0.0.1:6379"),
        RayPool(FakeEvaluator, cpus=2),
        RayPool(FakeEvaluator, workers=1),
        FakeEvaluator(),
    ]
    assert not any(one.share_with(pool) for pool in other)
    vars(one)["_seats"] = [1]
    two = RayPool(FakeEvaluator)
    assert not one.share_with(two)
    assert two.share_with(one) and vars(two)["_seats"] == [1]
    assert one.share_with(two) and one._crew.users == {0, 1}  # as before


def test_one_clip_and_no_clip(cluster, seeds, dev_clips):
    pool = RayPool(FakeEvaluator, workers=2)
    expected = FakeEvaluator().score(seeds, dev_clips[:1])
    np.testing.assert_array_equal(pool.score(seeds, dev_clips[:1]).logp, expected.logp)
    assert pool.score(seeds, []).logp.shape == (3, 0, 2)


def test_a_worker_that_cannot_start_is_one_sentence(cluster, seeds, dev_clips):
    class Broken(FakeEvaluator):
        def __init__(self):
            raise FileNotFoundError("no weights on this node")

    with pytest.raises(PauseError, match=r"cannot start .*no weights on this node"):
        RayPool(Broken, workers=2).score(seeds, dev_clips[:4])


@pytest.mark.parametrize("kills", [1, 2])
def test_a_killed_worker_is_replaced_and_nothing_is_missing(
    cluster, seeds, dev_clips, tmp_path, kills
):
    pool = RayPool(functools.partial(Slow, tmp_path, 0.005), workers=2)
    while len(victims := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        pool.score(seeds[:1], dev_clips[:8])

    def kill():
        for victim in victims[:kills]:
            time.sleep(0.3)
            os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    table = pool.score(seeds, dev_clips[:150])
    killer.join()
    np.testing.assert_array_equal(table.logp, FakeEvaluator().score(seeds, dev_clips[:150]).logp)
    assert pool.lost == kills


def test_a_death_counts_once_however_late_its_calls_fail_and_one_who_answers_again_does_not(
    cluster, seeds, dev_clips, tmp_path
):
    pool = RayPool(functools.partial(Slow, tmp_path), workers=1)
    pool.score(seeds, dev_clips[:4])
    (seat,), (first,) = pool._seats, tmp_path.iterdir()
    died = seat.process
    pool._lose(seat, died)
    assert (pool.lost, seat.usable) == (1, False)
    pool.score(seeds, dev_clips[:4])
    assert (pool.lost, seat.process, seat.usable) == (0, died, True)
    os.kill(int(first.name), signal.SIGKILL)
    pool.score(seeds, dev_clips[:4])
    assert (pool.lost, seat.process == died, seat.usable) == (1, False, True)
    pool._lose(seat, died)
    assert (pool.lost, seat.usable, seat.flight) == (1, True, {})


def test_a_lost_node_is_done_without(cluster, seeds, dev_clips, tmp_path):
    node = cluster.add_node(num_cpus=1, object_store_memory=10**8)
    pool = RayPool(functools.partial(Slow, tmp_path, 0.005))
    pool.score(seeds[:1], dev_clips[:16])
    threading.Timer(0.4, lambda: cluster.remove_node(node, allow_graceful=False)).start()
    table = pool.score(seeds, dev_clips[:150])
    np.testing.assert_array_equal(table.logp, FakeEvaluator().score(seeds, dev_clips[:150]).logp)


def test_a_prompt_that_cannot_be_scored_is_refused_as_in_one_process(cluster, seeds, dev_clips):
    pool = RayPool(Faulty, workers=2)
    bad = dataclasses.replace(seeds[0], text="PromptError A B")
    with pytest.raises(PromptError, match="these answers cannot be told apart"):
        pool.score([seeds[0], bad], dev_clips[:20])
    table = pool.score(seeds, dev_clips[:20])  # what was left of the call before is not mixed in
    np.testing.assert_array_equal(table.logp, FakeEvaluator().score(seeds, dev_clips[:20]).logp)
    gc.collect()
    gc.disable()  # a verb that waits for workers makes no objects: nobody looks for cycles then
    try:
        with pytest.raises(PromptError):
            pool.score([bad], dev_clips[:2])
        left = weakref.ref(pool)
        del pool
        assert left() is None  # its workers are the next pool's
    finally:
        gc.enable()


def test_clips_that_kill_every_worker_pause_the_run_and_are_named(cluster, seeds, dev_clips):
    pool = RayPool(Faulty, workers=2)
    bad = dataclasses.replace(seeds[0], text="the device is lost A B")
    with pytest.raises(PauseError, match=r"3 workers died on the clips from .* to .*"):
        pool.score([bad], dev_clips[:2])


def test_a_worker_without_memory_makes_all_take_its_shape(
    cluster, seeds, dev_clips, tmp_path, monkeypatch
):
    pool = RayPool(functools.partial(Small, tmp_path), workers=3)
    table = pool.score(seeds, dev_clips[:30])
    expected = FakeEvaluator().score(seeds, dev_clips[:30]).logp - np.float32(128)
    np.testing.assert_array_equal(table.logp, expected)
    assert pool.fingerprint.endswith("-128")
    begun = [seat for seat in pool._seats if seat.usable]
    for seat in begun:  # what a greeting that was lost leaves
        ray.get(seat.actor.begin.remote(0, pool._crew.makes, Shape(256)))
    np.testing.assert_array_equal(pool.score(seeds, dev_clips[:30]).logp, expected)
    monkeypatch.setattr("evaluators.ray_pool.LOSSES", 1)  # they did not die on these clips
    for seat in begun:
        seat.process = "of one that died"
        ray.get(seat.actor.begin.remote(0, pool._crew.makes, Shape(256)))
    np.testing.assert_array_equal(pool.score(seeds, dev_clips[:30]).logp, expected)
    assert pool.lost


class Sized(Shaped):
    """One on cards of several sizes: those that start later have larger batches."""

    def __init__(self, folder):
        super().__init__(delay=0.001)
        try:
            (folder / "first").touch(exist_ok=False)
            self.shape = Shape(128)
        except FileExistsError:
            time.sleep(0.3)  # the first has answered
            self.shape = Shape(256)


def test_a_larger_card_that_starts_late_takes_the_shape_of_the_smaller_ones(
    cluster, seeds, dev_clips, tmp_path
):
    pool = RayPool(functools.partial(Sized, tmp_path), workers=2)
    pool.score(seeds[:1], dev_clips[:9])
    end = time.monotonic() + 30
    while pool.usable < 2 and time.monotonic() < end:
        pool.score(seeds[:1], dev_clips[:9])
    assert pool.usable == 2
    assert pool.fingerprint.endswith("-128")
    pool.release()


def test_devices_that_differ_are_refused(cluster, seeds, dev_clips, tmp_path):
    class Odd(FakeEvaluator):
        def __init__(self):
            super().__init__(delay=0.02)
            self.fingerprint = f"card {os.getpid()}"

    pool = RayPool(Odd, workers=2)
    with pytest.raises(UserError, match="differ in weights, libraries or devices"):
        while True:  # as soon as the second worker has started
            pool.score(seeds, dev_clips[:10])


def test_a_verb_that_is_terminated_over_ray_is_interrupted_as_without_it(capsys, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(
        ray, "init", lambda **_: signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
    )
    monkeypatch.setattr(ray, "cluster_resources", dict)

    def verb():
        connect("auto")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    assert optimize.run_verb(verb) == 1
    assert "interrupted: nothing is lost" in capsys.readouterr().err


def test_a_cluster_that_another_process_started_for_itself_is_not_joined(monkeypatch):
    """It ends with that process, and Ray would then end this one after a minute, with a trace."""
    there, done = dict[str, int](), list[str]()

    def init(address=None, resources=None, **_):
        if not there and address == "auto":
            raise ConnectionError("no cluster")
        there.update(resources or {})

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(ray, "shutdown", lambda: done.append("shut down"))
    connect("auto")
    assert there and not done
    with pytest.raises(PauseError, match="for itself on this machine; wait until it has ended"):
        connect("auto")
    assert done == ["shut down"]


def test_too_many_cpus_are_one_sentence(cluster, seeds, dev_clips):
    with pytest.raises(UserError, match=r"\d CPUs and no GPU, a worker takes 64; add nodes"):
        RayPool(FakeEvaluator, cpus=64).score(seeds, dev_clips[:4])


@pytest.mark.tiny
def test_the_pocket_checkpoint_gives_equal_scores(cluster, pocket, seeds, dev_clips):
    from evaluators.audio_lm.checkpoint import open_checkpoint
    from evaluators.audio_lm.scorer import AudioScorer

    make = functools.partial(AudioScorer, open_checkpoint("pocket-base"), "cpu", "float32")
    pool = RayPool(make, workers=1)
    assert pool.fingerprint == pocket.fingerprint
    table = pool.score(seeds, dev_clips[:24])
    np.testing.assert_allclose(table.logp, pocket.score(seeds, dev_clips[:24]).logp, atol=1e-5)


@pytest.mark.slow
def test_a_matrix_with_its_searches_over_ray_has_the_numbers_of_one_process(cluster, tmp_path):
    flags = ["--checkpoint", "fake", "--search", "--split", "dev"]
    for name, more in (("alone", []), ("ray", ["--ray", "auto"])):
        argv = [*flags, *more, "--runs-dir", str(tmp_path / name)]
        assert matrix.run_verb(lambda argv=argv: matrix.main(argv)) == 0
    one, other = (tmp_path / name / "matrix-dev" / "predictions" for name in ("alone", "ray"))
    names = sorted(path.name for path in one.iterdir())
    assert names and names == sorted(path.name for path in other.iterdir())
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_a_search_over_ray_leaves_the_same_journal(cluster, tmp_path):
    flags = ["--checkpoint", "fake", "--iterations", "2", "--candidates", "4", "--name", "run"]
    for name, more in (("alone", []), ("ray", ["--ray", "auto"])):
        argv = [*flags, *more, "--runs-dir", str(tmp_path / name)]
        assert optimize.run_verb(lambda argv=argv: optimize.main(argv)) == 0
    for name in ("trials.jsonl", "leaderboard.csv", "best.yaml", "config.yaml"):
        one, other = tmp_path / "alone" / "run" / name, tmp_path / "ray" / "run" / name
        assert one.read_bytes() == other.read_bytes()
    evals = json.loads((tmp_path / "ray" / "run" / "summary.json").read_text())["evals"]
    assert evals["forward"] == evals["requested"] - evals["cached"] > 0
    # The same run goes on with or without a cluster.
    argv = [*flags, "--runs-dir", str(tmp_path / "ray")]
    assert optimize.run_verb(lambda: optimize.main(argv)) == 0
