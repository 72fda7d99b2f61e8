"""What the server of ``scoreopt play`` answers, to whom, and what it computes for whom."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading

import numpy as np
import pytest
import torch
from picture_files import announced, file_of

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient
from PIL import Image

from scoreopt_defense import ScoreOpt, pretrained
from scoreopt_defense.noise import derive
from scoreopt_defense.play import server
from scoreopt_defense.play.choices import Asked, domains
from scoreopt_defense.play.experiment import FRESH, experiment
from scoreopt_defense.play.jobs import Jobs, Stopped
from scoreopt_defense.play.pictures import MOST_PIXELS, as_url, from_url, magnified, read

KEY, HERE = "a-key", "http://127.0.0.1:8765"
DIGIT = (1, 28, 28)
DOMAINS = domains()
SAMPLE, LABEL = DOMAINS[0].samples[3]
SMALL = {
    "image": SAMPLE, "label": LABEL, "classifier": "mnist-tiny", "attack": "transfer-pgd-linf",
    "attack_steps": 3, "defence": "ScoreOpt mnist-tiny/N", "steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def client():
    with TestClient(server.application(DOMAINS, key=KEY), base_url=HERE) as client:
        client.headers["x-key"] = KEY
        yield client


def events_of(answer):
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


class TestWhoIsAnswered:
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 200),
            ({"origin": HERE}, 200),
            ({"host": "localhost:9000", "origin": "http://localhost:9000"}, 200),
            ({"host": "[::1]:8765"}, 200),
            ({"host": "192.168.1.7"}, 200),
            ({"host": "evil.example:8765"}, 421),
            ({"host": "127.0.0.1.evil.example"}, 421),
            ({"host": "localhost.evil.example"}, 421),
            ({"host": ""}, 421),
            ({"host": "[::1"}, 421),
            ({"host": "user@evil.example"}, 421),
            ({"origin": "http://evil.example"}, 403),
            ({"origin": "http://127.0.0.1:9999"}, 403),
            ({"origin": "null"}, 403),
            ({"origin": "http://[::1"}, 403),
            ({"sec-fetch-site": "cross-site"}, 403),
            ({"sec-fetch-site": "same-site"}, 403),
            ({"x-key": "another"}, 403),
            ({"x-key": ""}, 403),
        ],
    )
    def test_only_this_servers_own_page_is(self, client, headers, status):
        answer = client.get("/api/choices", headers=headers)
        assert answer.status_code == status
        assert status == 200 or answer.json()["why"]

    def test_a_port_that_is_taken_is_an_error_of_one_line(self):
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(OSError, match="in use"),
        ):
            server.serve(DOMAINS, host="127.0.0.1", port=taken.getsockname()[1])

    def test_a_link_to_the_page_may_stand_anywhere(self, client):
        assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200

    def test_a_name_that_the_server_was_given_is_its(self):
        app = server.application(DOMAINS, key=KEY, names=["Lab-3"])
        client = TestClient(app, base_url="http://lab-3:80")
        assert client.get("/").status_code == 200

    @pytest.mark.parametrize("path", ["/", "/page.css", "/play.css", "/play.js", "/nothing"])
    def test_no_answer_lets_another_site_in_or_out(self, client, path):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers

    def test_the_page_names_no_other_site_and_holds_no_key(self, client):
        for path in ("/", "/page.css", "/play.css", "/play.js"):
            text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
            assert "//" not in text.replace("// ", "")
            assert KEY not in text

    @pytest.mark.parametrize(
        "path", ["/../server.py", "/%2e%2e/server.py", "/page/play.html", "/docs", "/openapi.json",
                 "/etc/passwd", "//etc/passwd", "/api/../../server.py"],
    )  # fmt: skip
    def test_there_are_no_other_files(self, client, path):
        assert client.get(path).status_code == 404

    @pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE"])
    def test_a_preflight_is_in_vain(self, client, method):
        headers = {"origin": "http://evil.example", "access-control-request-headers": "x-key"}
        assert client.request(method, "/api/choices", headers=headers).status_code == 403


class TestUploads:
    def upload(self, client, content, **headers):
        return client.post("/api/image?classifier=mnist-tiny", content=content, headers=headers)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "no image of a kind among"),
            (b"GIF89a, or so it says", "cannot be read"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a kind among"),
            (file_of(np.zeros((9, 9)))[:-30], "cannot be read"),
            (announced(8000, 8000), "at most 25,000,000 pixels, and has 8,000 x 8,000"),
            (announced(65535, 65535), "pixels"),
        ],
    )
    def test_what_is_no_image_or_too_large_gets_a_sentence(self, client, content, said):
        answer = self.upload(client, content)
        assert answer.status_code == 422
        assert said in answer.json()["why"]

    def test_a_large_ones_pixels_are_not_decoded(self, monkeypatch):
        def load(self):
            raise AssertionError("decoded")

        monkeypatch.setattr(Image.Image, "load", load)
        with pytest.raises(ValueError, match="at most"):
            read(announced(8000, 8000), DIGIT)
        assert MOST_PIXELS < 8000 * 8000

    def test_too_many_bytes_are_refused_unread(self, client):
        answer = self.upload(client, b"", **{"content-length": str(server.MOST_BYTES + 1)})
        assert answer.status_code == 413
        assert self.upload(client, iter([b"of no ", b"stated length"])).status_code == 411

    def test_one_is_cut_to_its_middle_square_and_resized(self, client):
        wide = np.zeros((56, 112), dtype=np.uint8)
        wide[:, 28:84] = 200
        answer = self.upload(client, file_of(wide))
        x = from_url(answer.json()["image"], DIGIT)
        assert x.shape == (1, *DIGIT)
        # at its borders the filter, three pixels long, takes in what lies beyond them
        assert (255 * x[..., 3:-3]).round().unique().tolist() == [200]

    def test_colours_become_what_the_network_takes(self):
        red = np.zeros((32, 32, 4), dtype=np.uint8)
        red[..., 0], red[:, 16:, 3] = 255, 255
        x = read(file_of(red), (3, 32, 32))
        assert x[0, :, 0, 0].tolist() == [1, 1, 1]  # transparent, on white
        assert x[0, :, 0, 31].tolist() == [1, 0, 0]
        assert read(file_of(red[..., :3]), DIGIT).shape == (1, *DIGIT)

    def test_an_image_comes_back_as_it_was_sent(self):
        for shape in (DIGIT, (3, 32, 32)):
            x = torch.randint(256, (1, *shape)) / 255
            assert torch.equal((255 * from_url(as_url(x), shape)).round(), (255 * x).round())


class TestChoices:
    def test_each_begins_with_its_own_settings(self, client):
        digits, colours = client.get("/api/choices").json()["domains"]
        assert digits["attacks"]["transfer-pgd-linf"]["eps"] == 0.3
        assert colours["attacks"]["transfer-pgd-linf"]["eps"] == pytest.approx(8 / 255)
        assert digits["defences"]["ScoreOpt mnist-tiny/O"]["sigma"] == [0.5, 1.0]
        assert digits["defences"]["JPEG"] == {}
        assert [y for _, y in digits["samples"]] == list(range(10))
        classifier = pretrained.classifier("mnist-tiny")
        x = torch.cat([from_url(url, DIGIT) for url, _ in digits["samples"]])
        assert classifier(x).argmax(1).tolist() == list(range(10))

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"classifier": "file:/etc/passwd"}, "classifier must be one of"),
            ({"classifier": "python:os:getcwd"}, "classifier must be one of"),
            ({"steps": 201}, "steps"),
            ({"eps": -1}, "eps"),
            ({"seed": -1}, "seed"),
            ({"label": 10}, "label must be below 10"),
            ({"path": "/etc/passwd"}, "path"),
            ({"image": 3}, "image"),
        ],
    )
    def test_a_wrong_one_is_refused(self, client, wrong, said):
        answer = client.post("/api/experiments", json=SMALL | wrong)
        assert answer.status_code == 422
        assert said in answer.json()["why"]

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"attack": "no-attack"}, "attack must be one of"),
            ({"attack": "PGD"}, "attack must be one of"),
            ({"defence": "python:os:getcwd"}, "defence must be one of"),
            ({"sigma": [5, 9]}, "sigma must be within"),
            ({"eps": 8}, "eps must be above 0 and at most 1"),
            ({"image": "data:image/png;base64,!"}, "image must be a PNG file"),
            ({"image": "/etc/passwd"}, "image must be a PNG file"),
            ({"image": base64.b64encode(b"no image").decode()}, "cannot be read"),
            ({"attack": "pgd-eot-linf", "defence": "JPEG"}, "can be attacked in the modes"),
        ],
    )
    def test_one_that_does_not_fit_is_said_in_a_sentence(self, client, wrong, said):
        last = events_of(client.post("/api/experiments", json=SMALL | wrong))[-1]
        assert last["kind"] == "failed"
        assert said in last["why"]

    def test_a_users_own_images_and_networks(self, tmp_path):
        for place, label in enumerate("ab"):
            (tmp_path / label).mkdir()
            (tmp_path / label / "0.png").write_bytes(file_of(np.full((28, 28), 90 * place)))
        found = domains(images=str(tmp_path))
        assert [y for _, y in found[0].samples] == [0, 1]
        own = domains(images=str(tmp_path), classifier="mnist-tiny", denoiser="mnist-tiny")[0]
        assert own.shape == DIGIT
        assert own.classes == ("a", "b", *map(str, range(2, 10)))
        with pytest.raises(ValueError, match="needs --classifier, --denoiser and --images"):
            domains(classifier="mnist-tiny")


class TestExperiments:
    def test_one_tells_all_that_there_is_to_see(self, client):
        events = events_of(client.post("/api/experiments", json=SMALL | {"seed": 5}))
        kinds = [event["kind"] for event in events if event["kind"] != "attacking"]
        assert kinds == ["job", "clean", "attacked", "step", "step", "purified", "fresh", "done"]
        by_kind = {event["kind"]: event for event in events}
        images = {kind: from_url(event["image"], DIGIT) for kind, event in by_kind.items()
                  if "image" in event}  # fmt: skip
        assert by_kind["attacking"]["of"] == 3
        assert by_kind["attacked"]["linf"] <= 0.3 + 1e-6
        assert by_kind["clean"]["label"] == LABEL
        assert images["clean"].shape == (1, *DIGIT)
        half = 0.5 / 255 + 1e-6
        change = images["attacked"] - images["clean"]
        assert float(change.abs().max()) == pytest.approx(by_kind["attacked"]["linf"], abs=half)
        for event in by_kind.values():
            assert sum(event.get("probabilities", [1])) == pytest.approx(1, abs=10 * 5e-5)
        assert len(by_kind["fresh"]["classes"]) == FRESH

    def test_its_numbers_are_the_librarys_own(self):
        """With no attack, what comes out is what the purifier makes of the image by that seed."""
        told = []
        asked = Asked(**SMALL | {"attack": "none", "seed": 7})
        experiment(DOMAINS[0], asked, told.append, lambda: None)
        by_kind = {event["kind"]: event for event in told}
        denoiser = pretrained.denoiser("mnist-tiny")
        purifier = ScoreOpt.from_preset("mnist-tiny/N", denoiser, steps=2)
        x = from_url(SAMPLE, DIGIT)
        assert by_kind["purified"]["image"] == as_url(purifier(x, seed=derive(7, 1)))
        fresh = purifier(x, seed=derive(7, 2), samples=FRESH)
        answers = pretrained.classifier("mnist-tiny")(fresh).argmax(1).tolist()
        assert by_kind["fresh"]["classes"] == answers
        assert by_kind["attacked"]["image"] == SAMPLE

    @pytest.mark.parametrize(
        ("defence", "steps"),
        [("none", 0), ("BitDepth", 0), ("OneShot", 1), ("ScoreOpt mnist-tiny/O", 2),
         ("DiffPure", 2)],
    )  # fmt: skip
    def test_each_step_of_a_defence_is_told(self, defence, steps):
        told = []
        asked = Asked(**SMALL | {"defence": defence, "attack": "random-noise"})
        experiment(DOMAINS[0], asked, told.append, lambda: None)
        assert sum(event["kind"] == "step" for event in told) == steps

    @pytest.mark.parametrize(
        ("attack", "last"),
        # as it begins, in a transfer attack, in a forward and a backward pass, and in a step
        [("none", 1), ("transfer-pgd-linf", 4), ("pgd-eot-smoothed-linf", 3),
         ("pgd-eot-smoothed-linf", 7), ("none", 5)],
    )  # fmt: skip
    def test_once_stopped_no_network_is_called_and_no_hook_stays(self, attack, last):
        asked, check = Asked(**SMALL | {"attack": attack}), Once(last)
        with pytest.raises(Stopped):
            experiment(DOMAINS[0], asked, lambda _: None, check)
        assert check.calls == last
        networks = DOMAINS[0].classifier(asked), DOMAINS[0].purifier(asked).denoiser
        assert not any(n._forward_pre_hooks or n._forward_hooks for n in networks)

    def test_a_difference_is_magnified_about_grey(self):
        change = torch.tensor([[[[0.1, -0.1, 0.0]]]])
        shown, factor = magnified(change)
        assert factor == pytest.approx(5)
        assert shown.flatten().tolist() == pytest.approx([1, 0, 0.5])
        assert magnified(torch.zeros(1, 1, 2, 2))[1] == 100


class Once:
    """Stops at the network's call of that number, and counts those that follow."""

    def __init__(self, last):
        self.calls, self.last = 0, last

    def __call__(self):
        self.calls += 1
        if self.calls == self.last:
            raise Stopped("enough")


class TestLine:
    async def heard(self, jobs, work):
        return [event async for event in jobs.events(work)]

    def test_two_users_get_what_each_would_get_alone(self, client):
        """Side by side, attacks that draw from global generators included."""
        asked = [SMALL | {"seed": seed, "defence": "ScoreOpt mnist-tiny/O"} for seed in (1, 2)]

        def what(event):
            return event["kind"] not in ("job", "waiting", "attacking")

        alone = [list(filter(what, events_of(client.post("/api/experiments", json=one))))
                 for one in asked]  # fmt: skip
        works = [
            lambda tell, check, one=one: experiment(DOMAINS[0], Asked(**one), tell, check)
            for one in asked
        ]

        async def together():
            jobs = Jobs()
            return await asyncio.gather(*(self.heard(jobs, work) for work in works))

        both = asyncio.run(together())
        assert [list(filter(what, events)) for events in both] == alone
        assert alone[0] != alone[1]
        assert {"kind": "waiting", "ahead": 1} in both[1]

    def test_one_computes_at_a_time_in_order_and_says_its_place(self):
        at_once, order = [0], []
        gate = threading.Event()

        def work(number, tell, check):
            at_once.append(at_once[-1] + 1)
            gate.wait()
            order.append(number)
            at_once.append(at_once[-1] - 1)

        async def three():
            jobs = Jobs(most=3)
            waiting = [
                asyncio.create_task(self.heard(jobs, lambda *a, n=n: work(n, *a))) for n in range(3)
            ]
            while not jobs.is_full:
                await asyncio.sleep(0.01)
            gate.set()
            return await asyncio.gather(*waiting)

        found = asyncio.run(three())
        assert order == [0, 1, 2]
        assert max(at_once) == 1
        assert [e["ahead"] for e in found[2] if e["kind"] == "waiting"] == [2, 1]
        assert all(events[-1] == {"kind": "done"} for events in found)

    def test_a_stopped_one_ends_at_the_next_call_and_the_next_begins(self):
        begun = threading.Event()

        def endless(tell, check):
            while True:
                begun.set()
                check()

        async def stopping():
            jobs = Jobs()
            events = jobs.events(endless)
            first = await anext(events)
            others = [asyncio.create_task(self.heard(jobs, lambda *_: None)) for _ in range(2)]
            rest = asyncio.create_task(self.rest(events))
            while not begun.is_set():
                await asyncio.sleep(0.01)
            jobs.stop("no such job")
            (waiting,) = [job.id for job in jobs._line[2:]]
            jobs.stop(waiting)
            jobs.stop(first["id"])
            return await rest, *await asyncio.gather(*others)

        stopped, done, never = asyncio.run(stopping())
        assert stopped[-1] == {"kind": "stopped", "why": "stopped"}
        assert done[-1] == {"kind": "done"}
        assert never[-1]["why"] == "stopped before it began"

    async def rest(self, events):
        return [event async for event in events]

    def test_one_whose_listener_leaves_is_stopped(self):
        ended, begun = threading.Event(), threading.Event()

        def endless(tell, check):
            try:
                while True:
                    begun.set()
                    check()
            finally:
                ended.set()

        async def leaving():
            jobs = Jobs()
            listening = asyncio.create_task(self.heard(jobs, endless))
            while not begun.is_set():
                await asyncio.sleep(0.01)
            listening.cancel()
            await asyncio.wait([listening])
            while not ended.is_set():
                await asyncio.sleep(0.01)
            assert (await self.heard(jobs, lambda *_: None))[-1] == {"kind": "done"}

        asyncio.run(leaving())

    def test_time_ends_one_and_a_full_line_refuses_another(self):
        def endless(tell, check):
            while True:
                check()

        ended = asyncio.run(self.heard(Jobs(seconds=0), endless))[-1]
        assert ended["kind"] == "stopped"
        app = server.application(DOMAINS, key=KEY, jobs=Jobs(most=0))
        answer = TestClient(app, base_url=HERE).post(
            "/api/experiments", json=SMALL, headers={"x-key": KEY}
        )
        assert answer.status_code == 503

    def test_what_fails_otherwise_says_nothing_of_the_machine(self):
        def failing(tell, check):
            raise OSError("/home/somebody/secret")

        (_, last) = asyncio.run(self.heard(Jobs(), failing))
        assert last["kind"] == "failed"
        assert "/home" not in last["why"]
