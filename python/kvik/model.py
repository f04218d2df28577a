"""Language models: load a file, generate, score, look inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, get_args, overload

import numpy as np
import numpy.typing as npt

from kvik import _core
from kvik.arguments import (
    CacheType,
    WeightType,
    check_choice,
    check_count,
    check_ids,
    check_names,
    check_path,
    check_threads,
)
from kvik.encoder import Encoder, EncoderMetadata, Pooling, read_encoder_metadata
from kvik.errors import InvalidArgumentError, UnsupportedError
from kvik.generation import DEFAULT_NEW_TOKENS, Prompts, Run, Settings, read_prompts
from kvik.info import ModelInfo, Score, model_info
from kvik.metadata import GenerationMetadata, end_ids, read_metadata
from kvik.profile import Profile, read_profile
from kvik.tasks import (
    TASK_KEY,
    Answer,
    Classification,
    Filling,
    Tag,
    Task,
    find_task,
    wrong_task,
)
from kvik.texts import one_or_many
from kvik.tokenizer import Tokenizer, find_tokenizer
from kvik.translation import Translation, Translator, read_start_id

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Unpack

    from kvik.generation import SettingsDict
    from kvik.tokenizer import TokenizerLike

__all__ = ["Model", "load"]

Ids: TypeAlias = "Sequence[int] | npt.NDArray[np.integer[Any]]"

_SCORE_ROWS = 64  # logits rows held at once while scoring: 64 · vocabulary · 4 bytes


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    tokenizer: TokenizerLike | None = None,
    weights: WeightType = "f32",
    cache: CacheType = "f32",
    max_rows: int = 256,
    task: Task | None = None,
    outputs: Sequence[str] = (),
) -> Model:
    """Load an ONNX file that maps token ids to logits, or to vectors.

    The file is mapped, not copied, and must not change while the model lives.

    Args:
        path: The .onnx file; external weights are looked for in its folder.
        threads: Threads to compute with; None: one for each CPU of this process.
        tokenizer: Path of a tokenizer.json, a folder that holds one, or a tokenizers.Tokenizer.
            None: the one in the model's metadata, else tokenizer.json beside the file, else none
            (token ids only).
        weights: Precision in which the matrices of linear and recurrent layers and convolutions are
            kept in memory, whatever it is in the file, unless the file holds integers (as `kvik
            quantize` writes them): those run as they are stored, with any of the four. "bf16"
            halves what is read for each token; "int8" quarters it and quantises the layers' inputs
            row by row; "int4" reads a seventh, with a scale for each 32 weights. Rows of embedding
            tables have 8 bits by both; attention is computed in fp32. On CPUs that multiply
            bfloat16 numbers (AVX512_BF16, AMX) "bf16" rounds the layers' inputs too.
        cache: Precision in which keys and values of the tokens so far are kept. "bf16" halves their
            memory, "int8" quarters it, with a scale for each token and head. States of recurrent
            layers stay float32. A model that is not incremental has no cache.
        max_rows: Tokens of the prompts that are computed at once, 1 to 65536. More need more memory
            for activations; the numbers are the same.
        task: What the model is for, of "generate", "fill_mask", "classify", "tag", "answer",
            "embed" and "translate"; None: what the file's metadata says, else what its inputs and
            outputs look like.
        outputs: Of a model that reads whole texts, the outputs to compute; (): start_logits and
            end_logits where there are both, else logits, else the first of floats that can be
            computed for each text by itself.

    Raises:
        FileError: The file or the tokenizer can't be read.
        InvalidModelError: The bytes are not a valid model, or its kvik.* metadata are wrong.
        UnsupportedError: The model needs something that Kvik lacks; the message lists all of it.
        InvalidArgumentError: An argument is impossible.
    """
    file = check_path(path)
    core = _core.Model.load(
        file,
        threads=check_threads(threads),
        weights=check_choice(weights, "weights", get_args(WeightType)),
        cache=check_choice(cache, "cache", get_args(CacheType)),
        max_rows=check_count(max_rows, "max_rows", 1, 65536),
        outputs=check_names(outputs, "outputs"),
    )
    metadata = core.metadata
    return Model(
        core,
        find_tokenizer(file, metadata, tokenizer),
        read_metadata(metadata, core.info.token_limit or core.info.vocab_size, file),
        find_task(core, metadata, task, file),
        read_encoder_metadata(metadata, file),
        told=task is not None or TASK_KEY in metadata,
        start_id=read_start_id(metadata, file),
    )


class Model:
    """A loaded language model; made by :func:`kvik.load`.

    Several threads may use one model. Its computations run one after another, each on all of the
    model's threads; to use a machine better, pass several prompts in one call. A model can't be
    used in a forked child: load another there.
    """

    def __init__(
        self,
        core: _core.Model,
        tokenizer: Tokenizer | None,
        metadata: GenerationMetadata,
        task: Task,
        encoder: EncoderMetadata,
        *,
        told: bool,
        start_id: int | None,
    ) -> None:
        self._core = core
        self._tokenizer = tokenizer
        self._info = model_info(core)
        # Ids below this are accepted: rows of the embedding table where that is known.
        self._id_limit = core.info.token_limit or self._info.vocab_size
        self._defaults = dict(metadata.defaults or {})
        self._stop_ids = end_ids(metadata, tokenizer, self._info.vocab_size)
        self._task: Task = task
        self._told = told  # what it is for
        self._encoder = Encoder(core, tokenizer, encoder)
        self._translator = Translator(core, tokenizer, start_id, self._stop_ids)

    @property
    def info(self) -> ModelInfo:
        """Inputs and outputs, sizes, operators before and after fusion, ISA, metadata."""
        return self._info

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Text to ids and back; None for a model without."""
        return self._tokenizer

    @property
    def task(self) -> Task:
        """What the model is for, which says which of its methods fit."""
        return self._task

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a text unless a call says otherwise (end-of-text)."""
        return self._stop_ids

    @property
    def generation_defaults(self) -> dict[str, float]:
        """Sampling settings that the file recommends, e.g. {"temperature": 0.8, "top_k": 40}.

        `kvik generate` starts from them. Model.generate does not: what it does is in the call.
        """
        return dict(self._defaults)

    def explain(self) -> str:
        """What the engine proved about the graph, or where the proof stopped, by node name."""
        return "\n".join(self._core.explain)

    @overload
    def generate(self, prompt: str, **settings: Unpack[SettingsDict]) -> str: ...
    @overload
    def generate(
        self, prompt: list[str] | tuple[str, ...], **settings: Unpack[SettingsDict]
    ) -> list[str]: ...
    @overload
    def generate(self, prompt: Ids, **settings: Unpack[SettingsDict]) -> list[int]: ...
    @overload
    def generate(
        self, prompt: Sequence[Ids], **settings: Unpack[SettingsDict]
    ) -> list[list[int]]: ...

    def generate(
        self,
        prompt: str | Sequence[str] | Ids | Sequence[Ids],
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_ids: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> str | list[str] | list[int] | list[list[int]]:
        """Continue a prompt: text in, new text out; token ids in, new token ids out.

        A list of prompts gives a list of answers. The prompts run together in one flat batch
        without padding, and each answer is the one that its prompt alone would have got.

        Args:
            prompt: Text, token ids (a sequence of integers or a 1-D integer array), or a list of
                either.
            max_new_tokens: The most tokens to add, >= 0. A sequence also ends when the model's
                context (``info.context_length``) is full.
            temperature: 0: greedy, the most likely token, the lowest id on ties. Else the logits
                are divided by it, and a token is drawn from what the filters below leave.
            top_k: Keep the k most likely tokens; None or 0: all.
            top_p: Keep the fewest tokens whose probabilities reach it, in (0, 1]. Nucleus sampling,
                arXiv:1904.09751.
            min_p: Drop tokens less likely than min_p times the most likely, in [0, 1].
                arXiv:2407.01082.
            repetition_penalty: > 1 makes tokens that were seen less likely. arXiv:1909.05858.
            logit_bias: Added to the logits of single ids; -inf forbids an id.
            stop: A string, or several: the answer ends just before the first that is completed in
                it. For token ids the answer keeps the token that completes it.
            stop_ids: The answer ends before any of these; None: the model's own (``stop_ids``);
                (): none.
            seed: Of the random numbers, 0 to 2**64 - 1; the same on every platform. None: another
                one at every call. Equal prompts with equal seeds get equal answers, in one call
                too.

        Raises:
            InvalidArgumentError: An argument is impossible: an empty prompt, an id that is not in
                the vocabulary, a prompt longer than the context, text for a model without
                tokenizer, an option out of its range. Also when the model computes NaN.
        """
        self._must_generate("generate")
        settings = Settings(
            max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, logit_bias, stop,
            stop_ids, seed,
        )  # fmt: skip
        prompts = self._prompts(prompt)
        texts = [""] * len(prompts.ids)
        tokens: list[list[int]] = [[] for _ in prompts.ids]
        for piece in self._run(prompts, settings):
            texts[piece.request] += piece.text
            if piece.token is not None:
                tokens[piece.request].append(piece.token)
        if prompts.text:
            return texts if prompts.many else texts[0]
        return tokens if prompts.many else tokens[0]

    @overload
    def stream(self, prompt: str, **settings: Unpack[SettingsDict]) -> Iterator[str]: ...
    @overload
    def stream(self, prompt: Ids, **settings: Unpack[SettingsDict]) -> Iterator[int]: ...

    def stream(
        self,
        prompt: str | Ids,
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_ids: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> Iterator[str] | Iterator[int]:
        """Continue one prompt and yield the answer as it comes.

        Text comes in pieces that never split a UTF-8 character and never hold what may become a
        stop string; joined they are exactly what :meth:`generate` returns. For token ids the new
        ids come one by one. The arguments are those of generate() and are checked at once. Closing
        the iterator ends the generation.
        """
        self._must_generate("stream")
        settings = Settings(
            max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, logit_bias, stop,
            stop_ids, seed,
        )  # fmt: skip
        prompts = self._prompts(prompt)
        if prompts.many:
            raise InvalidArgumentError(
                "stream takes one prompt; use generate for a list of prompts"
            )
        run = self._run(prompts, settings)
        if prompts.text:
            return (piece.text for piece in run if piece.text)
        return (piece.token for piece in run if piece.token is not None)

    def logits(
        self, ids: str | Ids, *, cache: bool = True, chunk: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Logits after every token: float32 [len(ids), vocab_size].

        Row i depends on ids[: i + 1] alone. Neither ``cache`` nor ``chunk`` changes a bit of it.

        Args:
            ids: Token ids, or text.
            cache: False: compute every prefix from nothing, for checking; that costs len(ids) times
                as much and more.
            chunk: Feed the ids in pieces of this many tokens; None: all at once. Checked, but of
                no effect, without the cache.
        """
        self._must_generate("logits")
        tokens = np.asarray(self._prompts_of_one(ids), dtype=np.int64)
        size = len(tokens) if chunk is None else check_count(chunk, "chunk", 1)
        if not cache:
            rows = [
                self._core.forward(
                    [(self._core.new_sequence(), tokens[: i + 1], _core.Logits.LAST)]
                )
                for i in range(len(tokens))
            ]
            return np.concatenate(rows)
        return np.concatenate(list(self._logits_in_chunks(tokens, size)))

    def score(self, text: str | Ids) -> Score:
        """Log-probability of every token of a text (or of token ids) given those before it.

        Raises:
            InvalidArgumentError: as :meth:`generate`, and for fewer than two tokens.
        """
        self._must_generate("score")
        tokens = self._prompts_of_one(text)
        if len(tokens) < 2:
            raise InvalidArgumentError(
                "score needs at least two tokens: the first has nothing before it to predict it"
            )
        logprobs = np.full(len(tokens), np.nan)
        row = 0
        inputs = np.asarray(tokens[:-1], dtype=np.int64)
        for logits in self._logits_in_chunks(inputs, _SCORE_ROWS):
            wanted = tokens[row + 1 : row + 1 + len(logits)]
            logprobs[row + 1 : row + 1 + len(logits)] = _log_softmax_at(logits, wanted)
            row += len(logits)
        return Score(tokens, [self._spell(token) for token in tokens], logprobs)

    # ---- models that read whole texts ----------------------------------------------------------

    def encode(
        self, ids: Sequence[Ids], types: Sequence[Ids] | None = None
    ) -> dict[str, list[npt.NDArray[np.float32]]]:
        """What the graph gives for texts as token ids: by output, an array for each text.

        An array is float32 [len(ids), features], a row for every token, or [features] where the
        output has one row for a text. Texts of unequal lengths run together without padding, and
        none changes what another gets.

        Args:
            ids: A list of texts, each its token ids, special tokens among them.
            types: Of each, the token types (token_type_ids), as many; None: zeros.
        """
        if not self._core.info.encoded:
            raise self._not_by_sequence("encode")
        for name, value in (("ids", ids), ("types", types)):
            if value is not None and not isinstance(value, (list, tuple)):
                raise InvalidArgumentError(
                    f"{name} must be a list of texts as token ids; found {type(value).__name__}"
                )
        given = types if types is not None else [None] * len(ids)
        if len(given) != len(ids):
            raise InvalidArgumentError(
                f"types must be of as many texts as ids: {len(given)} of {len(ids)}"
            )
        texts = []
        for index, (text, own) in enumerate(zip(ids, given, strict=True)):
            tokens = np.array(check_ids(text, f"ids[{index}]", self._id_limit), np.int64)
            kinds = None if own is None else np.array(check_ids(own, f"types[{index}]"), np.int64)
            texts.append((tokens, kinds))
        rows = self._core.encode(texts)
        lengths = [len(tokens) for tokens, _ in texts]
        found: dict[str, list[npt.NDArray[np.float32]]] = {}
        begin = 0
        for name, features in self._core.info.encoded:
            part = rows[:, begin : begin + features]
            if self._core.info.encoded_per_token:
                found[name] = np.split(part, np.cumsum(lengths)[:-1]) if lengths else []
            else:
                found[name] = list(part)
            begin += features
        return found

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        pooling: Pooling | None = None,
        normalize: bool = True,
        truncate: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Vectors of texts: float32 [features] of one, [len(texts), features] of a list.

        Texts of unequal lengths run together without padding, and each gets the vector, to the last
        bit, that it would get alone.

        Args:
            texts: A text or a list of them.
            pooling: How the vectors of a text's tokens become one: "mean", "cls" (the first) or
                "max"; None: as the file says, else "mean".
            normalize: Scale each vector to length 1, so that dot products are cosines.
            truncate: A text that is longer than the model reads loses its end; False: an error.
        """
        self._fits("embed", "embed")
        several, many = one_or_many(texts, "texts")
        vectors = self._encoder.embed(several, pooling, normalize, truncate)
        return vectors if many else vectors[0]

    @overload
    def classify(self, texts: str | tuple[str, str], *, truncate: bool = ...) -> Classification: ...
    @overload
    def classify(
        self, texts: list[str] | list[tuple[str, str]], *, truncate: bool = ...
    ) -> list[Classification]: ...

    def classify(
        self,
        texts: str | tuple[str, str] | list[str] | list[tuple[str, str]],
        *,
        truncate: bool = False,
    ) -> Classification | list[Classification]:
        """The label of a text, or of a pair of texts (a tuple); a list of them gives a list.

        Args:
            texts: What is to be classified.
            truncate: A text that is longer than the model reads loses its end; False: an error.
        """
        self._fits("classify", "classify")
        if isinstance(texts, tuple):
            several, many = [_pair(texts, "texts")], False
        elif isinstance(texts, list) and any(isinstance(text, tuple) for text in texts):
            several, many = [_pair(text, f"texts[{i}]") for i, text in enumerate(texts)], True
        else:
            several, many = one_or_many(texts, "texts")
        found = self._encoder.classify(several, truncate)
        return found if many else found[0]

    def tag(self, text: str | Sequence[str]) -> list[Tag]:
        """A label for every word of a text, or of a text that is cut into words already.

        A word that the tokenizer cuts into several tokens has the label of the first.
        """
        self._fits("tag", "tag")
        if not isinstance(text, str):
            text = check_names(text, "text")
        return self._encoder.tag([text])[0]

    def answer(self, question: str, context: str, *, max_answer_tokens: int = 32) -> Answer:
        """The part of a context that answers a question.

        A context longer than the model reads is read in parts that overlap by a quarter.
        """
        self._fits("answer", "answer")
        for text, name in ((question, "question"), (context, "context")):
            if not isinstance(text, str):
                raise InvalidArgumentError(f"{name} must be a text; found {type(text).__name__}")
        return self._encoder.answer(question, context, max_answer_tokens)

    def fill_mask(self, text: str, *, top: int = 5) -> list[list[Filling]]:
        """For each mask ("[MASK]") of a text the likeliest tokens in its place, the best first.

        Every one is filled in as if the others stayed masked.
        """
        self._fits("fill_mask", "fill_mask")
        if not isinstance(text, str):
            raise InvalidArgumentError(f"text must be a text; found {type(text).__name__}")
        return self._encoder.fill_mask(text, top)

    # ---- models of two sequences ---------------------------------------------------------------

    @overload
    def translate(
        self, texts: str, *, beams: int = ..., n_best: None = ..., length_penalty: float = ...,
        max_new_tokens: int | None = ..., truncate: bool = ...,
    ) -> str: ...  # fmt: skip
    @overload
    def translate(
        self, texts: list[str] | tuple[str, ...], *, beams: int = ..., n_best: None = ...,
        length_penalty: float = ..., max_new_tokens: int | None = ..., truncate: bool = ...,
    ) -> list[str]: ...  # fmt: skip
    @overload
    def translate(
        self, texts: str, *, beams: int = ..., n_best: int, length_penalty: float = ...,
        max_new_tokens: int | None = ..., truncate: bool = ...,
    ) -> list[Translation]: ...  # fmt: skip
    @overload
    def translate(
        self, texts: list[str] | tuple[str, ...], *, beams: int = ..., n_best: int,
        length_penalty: float = ..., max_new_tokens: int | None = ..., truncate: bool = ...,
    ) -> list[list[Translation]]: ...  # fmt: skip

    def translate(
        self,
        texts: str | list[str] | tuple[str, ...],
        *,
        beams: int = 4,
        n_best: int | None = None,
        length_penalty: float = 0.6,
        max_new_tokens: int | None = None,
        truncate: bool = False,
    ) -> str | list[str] | list[Translation] | list[list[Translation]]:
        """The translation of a text, or of each of a list.

        The source is encoded once and kept; sentences of unequal lengths run together without
        padding, and each gets what it would get alone.

        Args:
            texts: A text or a list of them.
            beams: Hypotheses that are kept of each text, 1 to 256; 1 is greedy decoding.
            n_best: None: the best translation as text. Else a list of this many of the best, with
                their scores.
            length_penalty: 0 judges a hypothesis by its probability alone, more favours longer
                ones: log p / ((5 + length) / 6) ** length_penalty, arXiv:1609.08144.
            max_new_tokens: The most tokens of a target; None: what the model has room for, or four
                times the longest source.
            truncate: A text that is longer than the model reads loses its end; False: an error.
        """
        self._fits("translate", "translate")
        several, many = one_or_many(texts, "texts")
        found = self._translator.translate(
            several,
            beams=beams,
            n_best=1 if n_best is None else n_best,
            length_penalty=length_penalty,
            max_new_tokens=max_new_tokens,
            truncate=truncate,
        )
        if n_best is not None:
            return found if many else found[0]
        best = [hypotheses[0].text for hypotheses in found]
        return best if many else best[0]

    def _fits(self, method: str, task: Task) -> None:
        if self._task != task:
            raise wrong_task(method, self._task)
        if not self._core.info.encoded and not self._core.info.two_sequences:
            raise self._not_by_sequence(method)

    def _not_by_sequence(self, method: str) -> UnsupportedError:
        if self._info.incremental:
            reason = "this one generates: use generate(), stream(), score() or logits()"
        else:
            why = [line for line in self._core.explain if line.startswith("not by sequence")]
            reason = f"{(why or self._core.explain)[0]}; run it with kvik.InferenceSession"
        return UnsupportedError(f"{method}() needs a model that reads whole texts: {reason}")

    def _must_generate(self, method: str) -> None:
        """Also a model whose file does not say what it is for, if it gives logits of tokens."""
        if self._task != "generate" and (self._told or self._task != "fill_mask"):
            raise wrong_task(method, self._task)

    def start_profile(self) -> None:
        """Time every operator from now on, forgetting what was recorded before.

        The numbers stay the same; each operator takes two readings of the clock longer.
        """
        self._core.start_profile()

    def stop_profile(self) -> Profile:
        """Stop, and return what was recorded since start_profile(); nothing without it."""
        return read_profile(self._core.stop_profile())

    def _spell(self, token: int) -> str:
        return f"<id {token}>" if self._tokenizer is None else self._tokenizer.token(token)

    def _logits_in_chunks(
        self, tokens: npt.NDArray[np.int64], size: int
    ) -> Iterator[npt.NDArray[np.float32]]:
        sequence = self._core.new_sequence()
        for begin in range(0, len(tokens), size):
            part = tokens[begin : begin + size]
            yield self._core.forward([(sequence, part, _core.Logits.ALL)])

    def _prompts(self, prompt: object) -> Prompts:
        return read_prompts(prompt, self._tokenizer, self._id_limit)

    def _prompts_of_one(self, prompt: object) -> list[int]:
        prompts = self._prompts(prompt)
        if prompts.many:
            raise InvalidArgumentError("expected one text or one list of token ids; found several")
        limit = self._info.context_length
        if limit is not None and len(prompts.ids[0]) > limit:
            raise InvalidArgumentError(
                f"{len(prompts.ids[0])} tokens are more than the model's context of {limit}"
            )
        return prompts.ids[0]

    def _run(self, prompts: Prompts, settings: Settings) -> Run:
        return Run(self._core, prompts, settings, self._stop_ids, self._tokenizer)

    def __repr__(self) -> str:
        info = self._info
        how = "incremental" if info.incremental else "recomputes the whole sequence"
        if self._task == "generate":
            what = f"vocabulary {info.vocab_size}"
        else:
            what, how = f"task {self._task}", "by sequence"
        return (
            f"<kvik.Model: {info.parameters:,} parameters, {what}, "
            f"context {info.context_length or 'unlimited'}, {how}, {info.isa}, "
            f"{info.threads} threads>"
        )


def _pair(texts: object, name: str) -> tuple[str, str]:
    if isinstance(texts, tuple) and len(texts) == 2:
        first, second = texts
        if isinstance(first, str) and isinstance(second, str):
            return first, second
    raise InvalidArgumentError(f"{name} must be two texts; found {texts!r}"[:200])


def _log_softmax_at(logits: npt.NDArray[np.float32], ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """Log softmax(logits)[r, ids[r]] in double precision; logits: [rows, vocab_size]."""
    x = logits.astype(np.float64)
    peak = x.max(axis=1, keepdims=True)
    norm = np.log(np.exp(x - peak).sum(axis=1)) + peak[:, 0]
    found: npt.NDArray[np.float64] = x[np.arange(len(ids)), ids] - norm
    return found
