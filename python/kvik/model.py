"""A loaded model: what it can be asked, whatever it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from kvik import _core
from kvik.arguments import Ids, check_ids, check_names
from kvik.attention import (
    Attender,
    Attention,
    AttentionKind,
    check_kind,
    check_layers,
    image_maps,
)
from kvik.encoder import Encoder, EncoderMetadata, Pooling
from kvik.errors import InvalidArgumentError, UnsupportedError
from kvik.generation import DEFAULT_NEW_TOKENS, Prompts, Run, Settings, read_prompts
from kvik.images import ImageReader, is_image
from kvik.info import ModelInfo, Score, model_info
from kvik.metadata import GenerationMetadata, end_ids
from kvik.profile import Profile, read_profile
from kvik.scoring import Scorer
from kvik.session import InferenceSession
from kvik.tasks import Answer, Classification, Filling, Tag, Task, wrong_task
from kvik.texts import one_or_many
from kvik.tokenizer import Tokenizer
from kvik.translation import Translation, Translator
from kvik.zero_shot import TEMPLATE, LabelScorer, Normalization

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Unpack

    from kvik.generation import SettingsDict
    from kvik.images import PillowImage

__all__ = ["Model"]


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
        images: ImageReader | None,
        file: Path,
    ) -> None:
        self._core = core
        self._file = file
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
        self._attender = Attender(core, tokenizer)
        self._scorer = Scorer(core, tokenizer, self._translator, self._id_limit, self._stop_ids)
        self._labels = LabelScorer(core, tokenizer, self._info.context_length, self._stop_ids)
        self._images = images

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
    def generates(self) -> bool:
        """Whether generate() fits: token ids alone give logits, and the task is no other."""
        return self._task == "generate" or (self._task == "fill_mask" and not self._told)

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
        self,
        ids: str | Ids,
        *,
        source: str | Ids | None = None,
        cache: bool = True,
        chunk: int | None = None,
    ) -> npt.NDArray[np.float32]:
        """Logits after every token: float32 [len(ids), vocab_size].

        Row i depends on ids[: i + 1] alone, and on the source where there is one. Neither
        ``cache`` nor ``chunk`` changes a bit of it.

        Args:
            ids: Token ids, or text. Of a target: a text gets the id with which targets begin.
            source: What a translator translates, text or token ids; None for other models.
            cache: False: compute every prefix from nothing, for checking; that costs len(ids) times
                as much and more.
            chunk: Feed the ids in pieces of this many tokens; None: all at once. Checked, but of
                no effect, without the cache.
        """
        self._must_generate("logits", source)
        return self._scorer.logits(ids, source, cache, chunk)

    def score(self, text: str | Ids, *, source: str | Ids | None = None) -> Score:
        """Log-probability of every token of a text (or of token ids) given those before it.

        Args:
            text: Text or token ids. Of a target: a text is scored from the id with which targets
                begin to the one that ends them, as a whole translation.
            source: What a translator translates, text or token ids; None for other models.

        Raises:
            InvalidArgumentError: as :meth:`generate`, and for fewer than two tokens.
        """
        self._must_generate("score", source)
        return self._scorer.score(text, source)

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
        info = self._core.info
        if info.reads_images:
            raise wrong_task("encode", self._task)
        causal = info.incremental and self._task == "embed"
        if not info.encoded and not causal:
            raise self._not_by_sequence("encode")
        return self._encoder.outputs(ids, types, self._id_limit)

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
            pooling: How the vectors of a text's tokens become one: "mean", "cls" (the first),
                "last" or "max"; None: as the file says, else "mean", and "last" where tokens read
                earlier ones alone.
            normalize: Scale each vector to length 1, so that dot products are cosines.
            truncate: A text that is longer than the model reads loses its end; False: an error.
        """
        self._fits("embed", "embed")
        several, many = one_or_many(texts, "texts")
        vectors = self._encoder.embed(several, pooling, normalize, truncate)
        return vectors if many else vectors[0]

    @overload
    def classify(
        self, inputs: str | tuple[str, str] | PillowImage | os.PathLike[str], *,
        truncate: bool = ..., labels: Sequence[str] | None = ..., template: str = ...,
        normalization: Normalization = ...,
    ) -> Classification: ...  # fmt: skip
    @overload
    def classify(
        self, inputs: list[str] | list[tuple[str, str]] | list[PillowImage]
        | list[npt.NDArray[Any]] | list[os.PathLike[str]], *,
        truncate: bool = ..., labels: Sequence[str] | None = ..., template: str = ...,
        normalization: Normalization = ...,
    ) -> list[Classification]: ...  # fmt: skip
    @overload
    def classify(
        self, inputs: npt.NDArray[Any], *, truncate: bool = ...,
        labels: Sequence[str] | None = ..., template: str = ..., normalization: Normalization = ...,
    ) -> Classification | list[Classification]: ...  # fmt: skip

    def classify(
        self,
        inputs: object,
        *,
        truncate: bool = False,
        labels: Sequence[str] | None = None,
        template: str = TEMPLATE,
        normalization: Normalization = "none",
    ) -> Classification | list[Classification]:
        """The label of a text, of a pair of texts (a tuple), or of an image; a list gives a list.

        An image is a numpy array [height, width] or [height, width, channels], of integers from 0
        to 255 or floats from 0 to 1; a Pillow image; or the path of a file (.npy, or what Pillow
        reads). Its largest part in the middle that has the model's shape is scaled to the model's
        size, grey becomes colour and colour grey, and the pixels are normalised as the file says.
        An array of several images, [n, height, width, channels] or, of grey ones,
        [n, height, width], gives a list.

        A model that generates chooses between labels that are named to it (zero-shot): the one
        with which it would rather fill in the template. That compares log p(label | what stands
        before it), all of the label's tokens and what follows them in the template, and `scores`
        are its softmax over the labels.

        Args:
            inputs: What is to be classified.
            truncate: A text that is longer than the model reads loses its end; False: an error.
            labels: Of a model that generates, the labels to choose from, at least two.
            template: How text and label become one text, with {text} and {label} once each.
            normalization: What keeps a label from winning by its form: "none"; "length" divides by
                the label's number of tokens; "prior" subtracts the label's log-likelihood in the
                template without a text.

        Raises:
            FileError: An image file can't be read.
            UnsupportedError: An image file, and Pillow is not installed.
            InvalidArgumentError: An input or an option that does not fit the model.
        """
        if self._images is not None:
            _only_for_texts(labels, truncate)
            images, many = self._images.images(inputs)
            found = self._encoder.classified(self._images.logits(images))
            return found if many else found[0]
        if is_image(inputs) or (
            isinstance(inputs, (list, tuple)) and any(is_image(item) for item in inputs)
        ):
            raise InvalidArgumentError(
                f"classify() got an image, and this model reads texts (its task: {self._task})"
            )
        if labels is not None:
            return self._zero_shot(inputs, labels, template, normalization, truncate)
        if self._task == "generate":
            raise InvalidArgumentError(
                "this model generates: name the labels to choose from with labels=[...]"
            )
        self._fits("classify", "classify")
        if isinstance(inputs, tuple):
            several, many = [_pair(inputs, "inputs")], False
        elif isinstance(inputs, list) and any(isinstance(text, tuple) for text in inputs):
            several, many = [_pair(text, f"inputs[{i}]") for i, text in enumerate(inputs)], True
        else:
            several, many = one_or_many(inputs, "inputs")
        found = self._encoder.classify(several, truncate)
        return found if many else found[0]

    def _zero_shot(
        self, inputs: object, labels: object, template: str, normalization: str, truncate: bool
    ) -> Classification | list[Classification]:
        if self._task == "classify":
            raise InvalidArgumentError(
                "labels= is for models that generate; this one has labels of its own"
            )
        self._must_generate("classify")
        several, many = one_or_many(inputs, "inputs")
        found = self._labels.classify(several, labels, template, normalization, truncate)
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
                times those of its source and 16 more.
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

    # ---- looking inside --------------------------------------------------------------------------

    def attention(
        self,
        text: str | tuple[str, str] | Ids | PillowImage | os.PathLike[str],
        target: str | Ids | None = None,
        *,
        kind: AttentionKind | None = None,
        layers: int | Sequence[int] | None = None,
        truncate: bool = False,
    ) -> Attention:
        """How much each token counted for each other one, in every layer and head.

        >>> found = model.attention("The cat sat on the mat")
        >>> found.weights.shape  # layer, head, query, key
        (12, 12, 6, 6)
        >>> found.tokens
        ['The', ' cat', ' sat', ' on', ' the', ' mat']

        These are the weights that the engine uses for the same tokens, written down as it computes
        them; nothing else that the model does becomes slower. A layer and a head take
        len(tokens) * len(keys) * 4 bytes: of a long text, ask for a few layers.

        Args:
            text: A text or token ids; for a model that reads whole texts also a pair of texts (a
                tuple); for a translator the source; for a model of images an image, as
                :meth:`classify` takes it.
            target: Of a translator, the target: a text, or token ids from the one with which
                targets begin. None: what the model makes of the source by greedy decoding.
            kind: Of a translator, "cross", "self" or "source" alone; None: all three.
            layers: A layer or several, counted from 0; None: all.
            truncate: A text that is longer than the model reads loses its end; False: an error.
                Not for models that generate, nor for token ids.

        Raises:
            UnsupportedError: The model has no attention.
            InvalidArgumentError: A text that is empty or too long, an id out of range, a layer or
                a kind that the model has not, a target for a model of one sequence.
        """
        chosen, numbers = check_kind(kind), check_layers(layers)
        info = self._core.info
        if self._images is not None:
            if target is not None:
                raise InvalidArgumentError("target is for translators; this model reads images")
            # The graph is loaded again for this: nothing of it is kept where nobody asks.
            session = InferenceSession(self._file, info.threads, weights=self._info.weights)  # type: ignore[arg-type]
            feeds = self._images.feeds(text)
            return image_maps(session.attention(feeds, kind=chosen, layers=numbers or None))
        if info.two_sequences:
            source, _ = self._attender.framed(text, truncate, "the source")
            if target is None:
                ids = self._translator.greedy(source)
            elif isinstance(target, str):
                ids = self._translator.target(target)
            else:
                ids = np.array(check_ids(target, "target", self._id_limit), np.int64)
            return self._attender.of_pair(source, ids, chosen, numbers)
        if target is not None:
            raise InvalidArgumentError("target is for translators; this model reads one sequence")
        if chosen not in (None, "self"):
            raise InvalidArgumentError(
                f"kind={chosen!r} is for translators; a model of one sequence has 'self' alone"
            )
        if info.encoded:
            return self._attender.of_text(
                *self._attender.framed(text, truncate, "the text"), numbers
            )
        tokens = np.array(self._scorer.ids_of_one(text), np.int64)
        return self._attender.of_text(tokens, None, numbers)

    def _fits(self, method: str, task: Task) -> None:
        if self._task != task:
            raise wrong_task(method, self._task)
        info = self._core.info
        causal = info.incremental and task == "embed"  # its rows are what forward() gives
        if not info.encoded and not info.two_sequences and not causal:
            raise self._not_by_sequence(method)

    def _not_by_sequence(self, method: str) -> UnsupportedError:
        if self._info.incremental:
            reason = "this one generates: use generate(), stream(), score() or logits()"
        else:
            why = [line for line in self._core.explain if line.startswith("not by sequence")]
            reason = f"{(why or self._core.explain)[0]}; run it with kvik.InferenceSession"
        return UnsupportedError(f"{method}() needs a model that reads whole texts: {reason}")

    def _must_generate(self, method: str, source: object = None) -> None:
        """Also a model whose file does not say what it is for, if it gives logits of tokens.

        And a translator, but not without a source.
        """
        if self._task == "translate" and method in ("logits", "score"):
            if source is None:
                raise InvalidArgumentError(f"{method}() of a translator needs source=")
            return
        if source is not None:
            raise InvalidArgumentError(
                f"source= is for models that translate; this one's task is {self._task!r}"
            )
        if not self.generates:
            raise wrong_task(method, self._task)

    def start_profile(self) -> None:
        """Time every operator from now on, forgetting what was recorded before.

        The numbers stay the same; each operator takes two readings of the clock longer.
        """
        self._core.start_profile()

    def stop_profile(self) -> Profile:
        """Stop, and return what was recorded since start_profile(); nothing without it."""
        return read_profile(self._core.stop_profile())

    def _prompts(self, prompt: object) -> Prompts:
        return read_prompts(prompt, self._tokenizer, self._id_limit)

    def _run(self, prompts: Prompts, settings: Settings) -> Run:
        return Run(self._core, prompts, settings, self._stop_ids, self._tokenizer)

    def __repr__(self) -> str:
        info = self._info
        how = "incremental" if info.incremental else "recomputes the whole sequence"
        if self._task == "generate":
            what = f"vocabulary {info.vocab_size}"
        elif self._images is not None:
            return (
                f"<kvik.Model: {info.parameters:,} parameters, task {self._task}, {info.isa}, "
                f"{info.threads} threads>"
            )
        else:
            what = f"task {self._task}"
            how = how if self._core.info.two_sequences else "by sequence"
        return (
            f"<kvik.Model: {info.parameters:,} parameters, {what}, "
            f"context {info.context_length or 'unlimited'}, {how}, {info.isa}, "
            f"{info.threads} threads>"
        )


def _only_for_texts(labels: object, truncate: bool) -> None:
    if labels is not None:
        raise InvalidArgumentError(
            "labels= is for models that generate; this one has labels of its own"
        )
    if truncate:
        raise InvalidArgumentError("truncate= is for texts; images are scaled to the model's size")


def _pair(texts: object, name: str) -> tuple[str, str]:
    if isinstance(texts, tuple) and len(texts) == 2:
        first, second = texts
        if isinstance(first, str) and isinstance(second, str):
            return first, second
    raise InvalidArgumentError(f"{name} must be two texts; found {texts!r}"[:200])
