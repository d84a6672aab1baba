from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pizero.data.tokenizer import PaligemmaTokenizer, state_bins, train_tokenizer
from pizero.types import Convention, UserError

SENTENCES = [f"{verb} the {colour} block" for verb in ("reach", "lift") for colour in ("red", "green", "blue")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> PaligemmaTokenizer:
    return train_tokenizer(SENTENCES, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


def text_of(tokens: object, mask: object) -> str:
    return bytes(int(t) - 3 for t in np.asarray(tokens)[np.asarray(mask)] if t > 2).decode()


def test_the_two_forms() -> None:
    tokenizer = PaligemmaTokenizer.bytes()
    tokens, mask = tokenizer.encode(" Lift_the\ncup ", None, 48)
    assert tokens[0] == 2
    assert (tokens.dtype, mask.dtype, tokens.shape) == (np.int32, np.bool_, (48,))
    assert text_of(tokens, mask) == "Lift the cup\n"
    assert not tokens[~mask].any()
    tokens, mask = tokenizer.encode("Lift_the cup", np.array([-2.0, 0.0, 1.0]), 200)
    assert text_of(tokens, mask) == "Task: Lift the cup, State: -1 128 255;\nAction: "


def test_batch_equals_singles(trained: PaligemmaTokenizer) -> None:
    states = np.random.default_rng(0).uniform(-1.2, 1.2, (6, 3))
    for state in (None, states):
        tokens, mask = trained.encode_batch(SENTENCES, state, 60)
        for row, sentence in enumerate(SENTENCES):
            one, one_mask = trained.encode(sentence, None if state is None else state[row], 60)
            assert tokens[row].tolist() == one.tolist()
            assert mask[row].tolist() == one_mask.tolist()


def test_the_newline_is_encoded_by_itself(trained: PaligemmaTokenizer) -> None:
    tokens, mask = trained.encode("reach the red block", None, 40)
    newline = trained.encoder.encode("\n", add_bos=False)
    assert len(newline) == 1
    assert tokens[mask][-1] == newline[0]


@pytest.mark.parametrize("convention", ["openpi", "lerobot"])
def test_too_long_a_prompt_is_cut_at_its_end_and_told_once(convention: Convention) -> None:
    """As the released models' are: the line break at the end is lost."""
    tokenizer = PaligemmaTokenizer.bytes()
    whole, _ = tokenizer.encode("a long prompt", None, 40, convention)
    told = "prompt 'a long prompt': 15 tokens, of which the model takes the first 8; shorten it"
    with pytest.warns(UserWarning, match=f"^{told}$"):
        tokens, mask = tokenizer.encode("a long prompt", None, 8, convention)
    assert tokens.tolist() == whole[:8].tolist()
    assert mask.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.encode("a long prompt", None, 8, convention)
    with pytest.warns(UserWarning, match="prompt 'another long prompt': 21 tokens"):
        tokenizer.encode("another long prompt", None, 8, convention)


TIDY = "pick up the small red cup that stands beside the sink and put it upside down onto the upper shelf on the left"


def test_the_instruction_gives_way_and_never_the_state(trained: PaligemmaTokenizer) -> None:
    state = np.array([[-1.0, 0.0, 0.99], [0.5, 0.0, 0.99]])
    for tokenizer in (PaligemmaTokenizer.bytes(), trained):
        whole = tokenizer.encode(TIDY, state[0], 300)[1].sum()
        for length in range(300, 55, -1):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tokens, mask = tokenizer.encode_batch([TIDY, TIDY], state, length)
            assert (tokens[0] != tokens[1]).any()
            end = tokenizer.encoder.encode(", State: 0 128 254;\nAction: ", add_bos=False)
            assert tokens[0][mask[0]].tolist()[-len(end) :] == end
            if length >= whole:
                assert mask[0].sum() == whole
    with pytest.warns(
        UserWarning, match=r"144 tokens with the state, the model takes 80: .* cut after .*stands beside';"
    ):
        tokens, mask = PaligemmaTokenizer.bytes().encode(TIDY, state[0], 80)
    assert text_of(tokens, mask) == "Task: pick up the small red cup that stands beside, State: 0 128 254;\nAction: "


@given(
    st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Z", "So")), max_size=60),
    st.lists(st.floats(-2, 2), min_size=1, max_size=5),
    st.integers(30, 90),
)
def test_any_text_is_cut_to_what_fits(text: str, state: list[float], length: int) -> None:
    tokenizer = PaligemmaTokenizer.bytes()
    suffix = f", State: {' '.join(map(str, state_bins(np.array(state))))};\nAction: "
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if len("Task: " + suffix) + 1 > length:
            with pytest.raises(UserError, match=f"the state's {len(state)} dimensions take"):
                tokenizer.encode(text, np.array(state), length)
            return
        found = text_of(*tokenizer.encode(text, np.array(state), length))
    assert found.startswith("Task: ")
    assert found.endswith(suffix)
    kept = found.removeprefix("Task: ").removesuffix(suffix)
    cleaned = text.strip().replace("_", " ").replace("\n", " ")
    assert cleaned.startswith(kept)
    assert bool(told) == (kept != cleaned)
    room = length - len(f"Task: {suffix}") - 1
    longest = next(count for count in range(len(cleaned), -1, -1) if len(cleaned[:count].encode()) <= room)
    assert len(kept) >= len(cleaned[:longest].rstrip()) // 2


def test_a_state_that_leaves_no_room_is_refused() -> None:
    tokenizer = PaligemmaTokenizer.bytes()
    with pytest.raises(UserError, match=r"the state's 50 dimensions take 225 tokens and the model's prompt has 200"):
        tokenizer.encode("go", np.zeros(50), 200)
    with pytest.warns(UserWarning, match="the instruction is dropped"):
        tokens, mask = tokenizer.encode("go", np.zeros(1), len("Task: , State: 128;\nAction: ") + 1)
    assert text_of(tokens, mask) == "Task: , State: 128;\nAction: "


def test_many_cut_prompts_do_not_fill_the_log() -> None:
    tokenizer = PaligemmaTokenizer.bytes()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for number in range(300):
            tokenizer.encode(f"a long prompt {number}", None, 8)
    assert len(told) == 101
    assert "further prompts that are cut are not reported" in str(told[-1].message)


@given(st.integers(0, 255), st.floats(0.001, 0.999))
def test_bins_tile_the_range(index: int, part: float) -> None:
    value = -1 + (index + part) / 128
    assert state_bins(np.array([value]))[0] == index


def test_training_is_repeatable_quiet_and_complete(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = train_tokenizer(SENTENCES, tmp_path / "a.model")
    train_tokenizer(SENTENCES, tmp_path / "b.model")
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    assert tuple(capfd.readouterr()) == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.model", "b.model"]
    assert tokenizer.vocab_size <= 512
    tokens, mask = tokenizer.encode("Öffne 🚪 reach", None, 40)
    assert 3 not in tokens[mask]  # no unknown token: any text is spelled in bytes
    assert tokens.max() < tokenizer.vocab_size
    red, green = (tokenizer.encode(f"lift the {colour} block", None, 40)[1].sum() for colour in ("red", "green"))
    assert red == green == 6  # begin, four words, newline: a word of the corpus is one token


def test_digits_are_split(trained: PaligemmaTokenizer) -> None:
    short = trained.encode("x", np.array([-1.0]), 60)[1].sum()
    long = trained.encode("x", np.array([0.999]), 60)[1].sum()
    assert long - short == 2  # "255" against "0"


def test_save_and_load(trained: PaligemmaTokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "copy.model")
    copy = PaligemmaTokenizer(tmp_path / "copy.model")
    assert copy.vocab_size == trained.vocab_size
    assert copy.encode("lift the cup", None, 30)[0].tolist() == trained.encode("lift the cup", None, 30)[0].tolist()


def test_mistakes_are_told(tmp_path: Path) -> None:
    (tmp_path / "bad.model").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"bad\.model"):
        PaligemmaTokenizer(tmp_path / "bad.model")
    with pytest.raises(UserError, match=r"absent\.model"):
        PaligemmaTokenizer(tmp_path / "absent.model")
    with pytest.raises(UserError, match="no SentencePiece model to save"):
        PaligemmaTokenizer.bytes().save(tmp_path / "x.model")
    with pytest.raises(UserError, match="expected some"):
        train_tokenizer([], tmp_path / "x.model")


def test_speed(trained: PaligemmaTokenizer) -> None:
    """A generous bound (measured: below 20 microseconds a sample) that a slow path would break."""
    states = np.random.default_rng(0).uniform(-1, 1, (256, 7))
    prompts = [SENTENCES[0]] * 256
    best = min(_seconds(lambda: trained.encode_batch(prompts, states, 200)) for _ in range(5))
    assert best / 256 < 300e-6
    best = min(_seconds(lambda: trained.encode_batch(prompts, None, 48)) for _ in range(5))
    assert best / 256 < 100e-6


def _seconds(function: object) -> float:
    start = time.process_time()
    function()  # type: ignore[operator]
    return time.process_time() - start


@pytest.mark.parametrize("convention", ["openpi", "lerobot"])
@pytest.mark.parametrize("state", [None, np.zeros(3)])
def test_halves_of_characters_are_no_text(state: np.ndarray | None, convention: Convention) -> None:
    """As JSON with a lone "\\ud800" gives them, or an argument in another encoding than the terminal's."""
    for prompt in ("pick \ud800 up", "\udce9tage"):
        with pytest.raises(UserError, match=r"prompt '.*\\ud.*' is no text: it holds halves of characters"):
            PaligemmaTokenizer.bytes().encode(prompt, state, 99, convention)
    PaligemmaTokenizer.bytes().encode("🤖 pick é up", state, 99, convention)
