"""The extension's weights list and its Register dialog."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import httpx
import pytest

from wsisam_model.errors import CheckpointError
from wsisam_service.errors import NotSupported
from wsisam_service.sam import weights
from wsisam_service.sam.offer import serving_model, weights_list
from wsisam_service.sam.weights import WeightsRegister

TYPES = ["vit_h", "vit_l", "vit_b", "vit_t", "sam2_l", "sam2_bp", "sam2_s", "sam2_t", "sam3", "anything"]


@pytest.mark.parametrize("type_", [*TYPES, ""])
def test_the_weights_list_is_never_empty(type_: str) -> None:
    """An empty list makes every Run button of QuPath throw."""
    assert weights_list(type_, {"lite_medsam": "default"}, "lite_medsam")


def test_a_type_without_weights_says_who_answers() -> None:
    (entry,) = weights_list("vit_l", {"lite_medsam": "default"}, "lite_medsam")
    assert entry["url"] == "wsi-sam:lite_medsam"
    assert "lite_medsam answers" in entry["name"]


def test_an_installed_type_is_offered_under_its_own_name() -> None:
    (entry,) = weights_list("vit_b", {"lite_medsam": "default", "vit_b": "histo"}, "lite_medsam")
    assert entry == {"type": "vit_b", "name": "histo", "url": "wsi-sam:vit_b"}


def test_a_type_that_is_not_offered_says_so_in_its_entry() -> None:
    (entry,) = weights_list("sam3", {"lite_medsam": "default"}, "lite_medsam")
    assert entry["name"] == "sam3 is not offered by this server"


@pytest.mark.parametrize(
    ("type_", "chosen", "model"),
    [
        ("vit_l", None, "lite_medsam"),
        ("", None, "lite_medsam"),
        ("vit_b", "https://elsewhere.example/sam_vit_b.pth", "vit_b"),
        ("vit_b", "wsi-sam:lite_medsam", "lite_medsam"),
        ("vit_b", "wsi-sam:../../etc/passwd", "vit_b"),
    ],
)
def test_the_model_comes_from_the_chosen_entry_or_else_the_type(type_: str, chosen: str | None, model: str) -> None:
    assert serving_model(type_, chosen, {"lite_medsam", "vit_b"}, "lite_medsam") == model


@pytest.mark.parametrize("type_", ["sam2_l", "sam3", "anything"])
def test_types_that_are_not_offered_are_refused(type_: str) -> None:
    with pytest.raises(NotSupported):
        serving_model(type_, f"unsupported:{type_}", {"lite_medsam"}, "lite_medsam")


class Installer:
    """Takes files whose content is "good"."""

    def __init__(self) -> None:
        self.installed: list[tuple[str, str]] = []

    async def __call__(self, model: str, path: Path) -> None:
        if await asyncio.to_thread(path.read_bytes) != b"good":
            raise CheckpointError("the weights have no tensor named x")
        self.installed.append((model, path.name))


def served(content: bytes | None = None, **answers: httpx.Response) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        name = request.url.path.strip("/").split(".")[0]
        return answers.get(name, httpx.Response(200, content=content or b""))

    return httpx.MockTransport(answer)


@pytest.fixture
def installer() -> Installer:
    return Installer()


def register_of(
    folder: Path, installer: Installer, transport: httpx.AsyncBaseTransport | None = None
) -> WeightsRegister:
    return WeightsRegister(folder, ["weights.example"], installer, transport=transport)


async def test_a_file_of_the_folder_is_registered_by_name(tmp_path: Path, installer: Installer) -> None:
    (tmp_path / "histo.pth").write_bytes(b"good")
    register = register_of(tmp_path, installer)
    assert (await register.register("vit_b", " histo ", "histo.pth", ["lite_medsam"])).startswith("Registered: histo")
    assert installer.installed == [("vit_b", "histo.pth")]
    assert register.names == {"vit_b": "histo"}


@pytest.mark.parametrize(
    "name",
    [
        "../outside.pth",
        "/etc/passwd",
        "missing.pth",
        "notes.txt",
        "sub/../../outside.pth",
        "\0.pth",
        f"{'x' * 300}.pth",
    ],
)
async def test_what_lies_outside_the_folder_does_not_exist(tmp_path: Path, installer: Installer, name: str) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "notes.txt").write_bytes(b"good")
    (tmp_path / "outside.pth").write_bytes(b"good")
    answer = await register_of(folder, installer).register("vit_b", "n", name, [])
    assert answer == "Not registered: the server's weights folder has no such file."
    assert not installer.installed


async def test_a_download_from_an_allowed_host_is_kept_and_registered(tmp_path: Path, installer: Installer) -> None:
    register = register_of(tmp_path, installer, served(b"good"))
    answer = await register.register("vit_h", "big", "https://weights.example/a/big.pth?x=1", [])
    assert answer.startswith("Registered")
    ((model, name),) = installer.installed
    assert (model, name.endswith("-big.pth")) == ("vit_h", True)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example/a.pth",
        "http://weights.example/a.pth",
        "file:///etc/passwd.pth",
        "https://weights.example@elsewhere.example/a.pth",
        "https://weights.example.elsewhere.example/a.pth",
    ],
)
async def test_other_addresses_are_not_asked(tmp_path: Path, installer: Installer, url: str) -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError("the server went out")

    answer = await register_of(tmp_path, installer, httpx.MockTransport(never)).register("vit_b", "n", url, [])
    assert answer == "Not registered: this server does not download from that address."


async def test_a_redirect_does_not_lead_past_the_allowed_hosts(tmp_path: Path, installer: Installer) -> None:
    elsewhere = httpx.Response(302, headers={"location": "https://elsewhere.example/a.pth"})
    register = register_of(tmp_path, installer, served(a=elsewhere))
    answer = await register.register("vit_b", "n", "https://weights.example/a.pth", [])
    assert answer == "Not registered: this server does not download from that address."


@pytest.mark.parametrize(("redirects", "answer"), [(4, "Registered: n "), (5, "Not registered: the address redirects")])
async def test_a_few_redirects_among_allowed_hosts_are_followed(
    tmp_path: Path, installer: Installer, redirects: int, answer: str
) -> None:
    asked: list[str] = []

    def send_on(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if len(asked) > redirects:
            return httpx.Response(200, content=b"good")
        return httpx.Response(302, headers={"location": f"/{len(asked)}.pth"})

    register = WeightsRegister(tmp_path, ["Weights.Example"], installer, transport=httpx.MockTransport(send_on))
    assert (await register.register("vit_b", "n", "https://weights.EXAMPLE/0.pth", [])).startswith(answer)
    assert asked == [f"/{number}.pth" for number in range(5)]


async def test_a_download_is_bounded_and_leaves_nothing_where_it_fails(
    tmp_path: Path, installer: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "MAX_WEIGHTS_BYTES", 4)
    register = register_of(tmp_path, installer, served(b"good+", gone=httpx.Response(404, content=b"good")))
    for name, why in (
        ("a.pth", "the file is too large."),
        ("gone.pth", "the address answers 404."),
        ("a.zip", "the address does not end in .pth, .pt, .safetensors."),
    ):
        answer = await register.register("vit_b", "n", f"https://weights.example/{name}", [])
        assert answer == f"Not registered: {why}"
    assert not os.listdir(tmp_path)
    whole = register_of(tmp_path, installer, served(b"good"))
    assert (await whole.register("vit_b", "n", "https://weights.example/a.pth", [])).startswith("Registered")


async def test_a_download_is_kept_in_the_folder_under_a_harmless_name(tmp_path: Path, installer: Installer) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    register = register_of(folder, installer, served(b"good"))
    await register.register("vit_b", "n", "https://weights.example/a/%2E%2E%2F%2E.hid%20%C3%A9den$.pth", [])
    ((_, name),) = installer.installed
    assert name.split("-", 1)[1] == "hidden.pth"
    assert os.listdir(folder) == [name]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://[x/a.pth", "that is no address."),
        ("https://weights.example:99999/a.pth", "that is no address."),
        ("https://weights.example/moved.pth", "the address could not be reached."),
        ("https://weights.example/far.pth", "that is no address."),
        ("https://weights.example/a.pth", "the server's weights folder takes no file now."),
    ],
)
async def test_addresses_that_are_none_and_a_folder_that_is_not_there_are_refused_in_a_sentence(
    tmp_path: Path, installer: Installer, url: str, why: str
) -> None:
    moved = httpx.Response(302, headers={"location": "https://[bad"})
    far = httpx.Response(302, headers={"location": "https://weights.example:99999/a.pth"})
    register = register_of(tmp_path / "missing", installer, served(b"good", moved=moved, far=far))
    assert await register.register("vit_b", "n", url, []) == f"Not registered: {why}"


async def test_a_file_that_does_not_fit_is_refused_with_its_reason_and_not_kept(
    tmp_path: Path, installer: Installer
) -> None:
    register = register_of(tmp_path, installer, served(b"bad"))
    answer = await register.register("vit_b", "n", "https://weights.example/a.pth", [])
    assert answer == "Not registered: the weights have no tensor named x"
    assert not os.listdir(tmp_path)
    assert not register.names


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (("sam2_l", "n", "a.pth"), "vit_t, vit_b, vit_l and vit_h"),
        (("vit_b", "", "a.pth"), "a name"),
        (("vit_b", "n", " "), "a name"),
        (("vit_l", "n", "a.pth"), "already"),
    ],
)
async def test_refusals_are_sentences(
    tmp_path: Path, installer: Installer, asked: tuple[str, str, str], why: str
) -> None:
    answer = await register_of(tmp_path, installer).register(*asked, ["vit_l"])
    assert answer.startswith("Not registered: ")
    assert why in answer


async def test_without_a_folder_nothing_is_taken(installer: Installer) -> None:
    answer = await WeightsRegister(None, [], installer).register("vit_b", "n", "a.pth", [])
    assert answer == "Not registered: this server takes no weights from outside."


class Slow(httpx.AsyncByteStream):
    """Sends a piece, says so, and then nothing more until it is let go."""

    def __init__(self) -> None:
        self.sent = asyncio.Event()

    async def __aiter__(self):  # type: ignore[no-untyped-def]
        yield b"x" * (3 << 20)
        self.sent.set()
        await asyncio.Event().wait()


async def test_progress_and_cancel_answer_while_a_download_runs(tmp_path: Path, installer: Installer) -> None:
    slow = Slow()
    response = httpx.Response(200, headers={"content-length": str(6 << 20)}, stream=slow)
    register = register_of(tmp_path, installer, served(a=response))
    idle = register.progress
    registering = asyncio.create_task(register.register("vit_b", "n", "https://weights.example/a.pth", []))
    await slow.sent.wait()
    await asyncio.sleep(0)
    assert register.progress.message is not None
    assert 0 < register.progress.percent < 100
    assert await register.register("vit_l", "m", "b.pth", []) == "Not registered: another registration is running."
    assert register.cancel() == "Cancelling."
    assert await registering == "Cancelled: nothing was registered."
    assert register.progress == idle
    assert register.cancel() == "Nothing to cancel."
    assert not os.listdir(tmp_path)


async def test_a_client_that_goes_ends_its_download_and_the_next_is_taken(tmp_path: Path, installer: Installer) -> None:
    slow = Slow()
    register = register_of(tmp_path, installer, served(b"good", slow=httpx.Response(200, stream=slow)))
    registering = asyncio.create_task(register.register("vit_b", "n", "https://weights.example/slow.pth", []))
    await slow.sent.wait()
    registering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await registering
    assert not os.listdir(tmp_path)
    assert (await register.register("vit_b", "n", "https://weights.example/a.pth", [])).startswith("Registered")


async def test_a_cancel_just_as_a_download_ends_leaves_no_file(
    tmp_path: Path, installer: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = register_of(tmp_path, installer, served(b"good"))
    loop, rename = asyncio.get_running_loop(), Path.rename

    def cancelled(path: Path, target: Path) -> Path:
        loop.call_soon_threadsafe(register.cancel)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", cancelled)
    answer = await register.register("vit_b", "n", "https://weights.example/a.pth", [])
    assert answer == "Cancelled: nothing was registered."
    assert not os.listdir(tmp_path)
    assert not register.names
