"""The Kvik engine. Use it through the package kvik."""

from collections.abc import Sequence as _Sequence
import enum
import os
from typing import Annotated, Any

import numpy
import numpy.typing
from numpy.typing import NDArray


def version() -> str:
    """The version of the engine, e.g. "0.1.0"."""

class TensorInfo:
    """What a model says of an input or output."""

    @property
    def name(self) -> str:
        """Its name in the file."""

    @property
    def dtype(self) -> str:
        """Its element type in numpy's spelling, e.g. "float32"."""

    @property
    def shape(self) -> list[int | str | None] | None:
        """
        Sizes, names of symbolic dimensions, None where nothing is known, outermost first; None when not even the rank is known.
        """

class OpProfile:
    """One node of the graph that runs, and its time."""

    @property
    def op(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def calls(self) -> int: ...

    @property
    def seconds(self) -> float: ...

    @property
    def bytes(self) -> float:
        """Of weights, and of cached keys and values, read."""

    @property
    def operations(self) -> float:
        """Of matrix products; a multiply-add is two."""

class Profile:
    """Where the time of some calls went."""

    @property
    def calls(self) -> int: ...

    @property
    def seconds(self) -> float: ...

    @property
    def ops(self) -> list[OpProfile]:
        """In the order of the graph; those that were called."""

    @property
    def overhead_seconds(self) -> float:
        """What the calls took beside their operators."""

class AttentionWeights:
    """The weights of layers of one kind, whose shapes are equal."""

    @property
    def kind(self) -> str:
        """self, cross or source."""

    @property
    def layers(self) -> list[int]:
        """The place of each among those of its kind."""

    @property
    def names(self) -> list[str]:
        """The name of each in the graph."""

    @property
    def weights(self) -> numpy.typing.NDArray[numpy.float32]:
        """
        Float32 [layers, heads, queries, keys]; of a session [layers, batch, heads, ...].
        """

    @property
    def queries(self) -> str:
        """Of a session: the dimension of the queries, a number or an expression."""

    @property
    def keys(self) -> str:
        """The same of the keys."""

class Session:
    """A loaded graph; see kvik.InferenceSession."""

    @staticmethod
    def load(path: str | os.PathLike[str], threads: int = 0, optimize: bool = True, extra_outputs: _Sequence[str] = [], weights: str = 'f32') -> Session:
        """Load a file; threads=0 means one a CPU."""

    @staticmethod
    def from_bytes(data: bytes, threads: int = 0, optimize: bool = True, extra_outputs: _Sequence[str] = [], weights: str = 'f32') -> Session:
        """Load a model from memory; it is copied."""

    @property
    def inputs(self) -> list[TensorInfo]:
        """Inputs without a default, in the file's order."""

    @property
    def outputs(self) -> list[TensorInfo]:
        """Outputs in the file's order, extra ones last."""

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata_props."""

    def start_profile(self) -> None:
        """Time every node from now on, forgetting what was recorded before."""

    def stop_profile(self) -> Profile:
        """Stop, and return what was recorded since start_profile()."""

    def run(self, output_names: _Sequence[str], feeds: _Sequence[tuple[str, numpy.typing.NDArray[Any]]]) -> list[numpy.typing.NDArray[Any]]:
        """
        Run the graph on C-contiguous arrays, which are not copied. Results own their memory.
        """

    def attention(self, feeds: _Sequence[tuple[str, numpy.typing.NDArray[Any]]], kind: str | None = None, layers: _Sequence[int] = ()) -> list[AttentionWeights]:
        """The weights of the attentions in the graph; no layers: all."""

class ModelInfo:
    """Figures of a loaded model; see kvik.ModelInfo."""

    @property
    def producer(self) -> str: ...

    @property
    def ir_version(self) -> int: ...

    @property
    def opsets(self) -> dict[str, int]: ...

    @property
    def inputs(self) -> list[TensorInfo]: ...

    @property
    def outputs(self) -> list[TensorInfo]: ...

    @property
    def parameters(self) -> int: ...

    @property
    def weight_bytes(self) -> int: ...

    @property
    def packed_bytes(self) -> int: ...

    @property
    def activation_bytes(self) -> int: ...

    @property
    def state_bytes_per_position(self) -> int: ...

    @property
    def recurrent_bytes_per_position(self) -> int: ...

    @property
    def ops_before(self) -> list[tuple[str, int]]: ...

    @property
    def ops_after(self) -> list[tuple[str, int]]: ...

    @property
    def weights(self) -> str: ...

    @property
    def cache(self) -> str: ...

    @property
    def incremental(self) -> bool: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def token_limit(self) -> int: ...

    @property
    def reads_types(self) -> bool: ...

    @property
    def type_limit(self) -> int: ...

    @property
    def encoded(self) -> list[tuple[str, int]]: ...

    @property
    def reads_images(self) -> bool: ...

    @property
    def encoded_per_token(self) -> bool: ...

    @property
    def context_length(self) -> int: ...

    @property
    def two_sequences(self) -> bool: ...

    @property
    def source_limit(self) -> int: ...

    @property
    def source_length(self) -> int: ...

    @property
    def threads(self) -> int: ...

    @property
    def isa(self) -> str: ...

class GraphStage(enum.Enum):
    """A graph on its way from the file to the plan."""

    IMPORTED = 0
    """As in the file, in ONNX's newest spelling."""

    OPTIMIZED = 1
    """Folded and fused."""

    ROWS = 2
    """On a flat batch of token rows."""

class GraphNode:
    """One operator of a graph."""

    @property
    def op(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> list[str]:
        """Names of values; "" where left out."""

    @property
    def outputs(self) -> list[str]:
        """Names of values; "" where left out."""

class Logits(enum.Enum):
    """Which logits a step computes."""

    NONE = 0
    """None: only extend the sequence."""

    LAST = 1
    """Those of the last token."""

    ALL = 2
    """Those of every token."""

class Sequence:
    """The state of one token sequence. One thread at a time."""

    @property
    def length(self) -> int:
        """Tokens so far."""

    @property
    def state_bytes(self) -> int:
        """Bytes of keys, values and states, shared ones too."""

    def fork(self) -> Sequence:
        """A second sequence with the same tokens so far; full blocks are shared."""

    def truncate(self, length: int) -> None:
        """Forget the tokens from this position on."""

class MatrixInfo:
    """A matrix of a linear or recurrent layer, or an embedding table."""

    @property
    def name(self) -> str:
        """Of the value in the file."""

    @property
    def shape(self) -> tuple[int, int]:
        """As in the file."""

    @property
    def weights(self) -> str:
        """Its precision in memory."""

    @property
    def stored(self) -> bool:
        """Whether the file holds integers."""

    @property
    def multiplied(self) -> bool:
        """Whether a linear or recurrent layer multiplies by it."""

    @property
    def looked_up(self) -> bool:
        """Whether token ids look its rows up."""

    @property
    def directions(self) -> int:
        """
        Of a recurrent layer whose W or R [directions, rows / directions, columns] it is; 0: of any other.
        """

    @property
    def channel_axis(self) -> int:
        """Of the shape: output channels, or tokens of a table."""

    @property
    def other_use(self) -> str:
        """A node that reads it in yet another way, or ""."""

class Model:
    """A loaded language model; see kvik.Model."""

    @staticmethod
    def load(path: str | os.PathLike[str], threads: int = 0, weights: str = 'f32', cache: str = 'f32', optimize: bool = True, incremental: bool = True, max_rows: int = 256, outputs: _Sequence[str] = ()) -> Model:
        """
        Load a file; threads=0 means one a CPU, no outputs those that fit together.
        """

    @staticmethod
    def from_bytes(data: bytes, threads: int = 0, weights: str = 'f32', cache: str = 'f32', optimize: bool = True, incremental: bool = True, max_rows: int = 256, outputs: _Sequence[str] = []) -> Model:
        """Load a model from memory; it is copied."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata_props."""

    @property
    def explain(self) -> list[str]:
        """What was proved, or where the proof stopped; one line each."""

    def dump(self, stage: GraphStage) -> str:
        """A listing, one line a node; "" for a stage that does not exist."""

    def nodes(self, stage: GraphStage) -> list[GraphNode]:
        """The nodes in execution order."""

    def matrices(self) -> list[MatrixInfo]:
        """
        The matrices of linear and recurrent layers and the embedding tables, in the order in which they run.
        """

    def integers(self, matrix: MatrixInfo) -> tuple[numpy.typing.NDArray[numpy.int8], numpy.typing.NDArray[numpy.float32]]:
        """
        A matrix that is kept as int8 or int4: values [rows, columns] and their scales, of the same rank: one for each channel (int8), or channel and 32 inputs (int4).
        """

    def new_sequence(self) -> Sequence:
        """An empty sequence."""

    def new_sequences(self, sources: _Sequence[numpy.typing.NDArray[numpy.int64]]) -> list[Sequence]:
        """An empty target for each source; sources are computed together."""

    def start_profile(self) -> None:
        """Time every operator from now on, forgetting what was recorded before."""

    def stop_profile(self) -> Profile:
        """Stop, and return what was recorded since start_profile()."""

    def forward(self, steps: _Sequence[tuple[Sequence, numpy.typing.NDArray[numpy.int64], Logits]]) -> numpy.typing.NDArray[numpy.float32]:
        """
        Append each step's ids to its sequence. Returns the logits that the steps ask for, float32 [rows, vocab_size], in the order of the steps and of their tokens.
        """

    def encode(self, texts: _Sequence[tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64] | None]]) -> numpy.typing.NDArray[numpy.float32]:
        """
        Whole texts, each as ids and their types (None: zeros), without padding. Returns float32 [rows, features]: a row for every token, or one for each text.
        """

    def attention(self, ids: numpy.typing.NDArray[numpy.int64], types: numpy.typing.NDArray[numpy.int64] | None = None, target: numpy.typing.NDArray[numpy.int64] | None = None, kind: str | None = None, layers: _Sequence[int] = ()) -> list[AttentionWeights]:
        """
        The attention weights of a text, or of a source and its target; no layers: all.
        """

    def encode_images(self, images: numpy.typing.NDArray[numpy.float32]) -> numpy.typing.NDArray[numpy.float32]:
        """
        Float32 [images, features] of float32 [images, channels, height, width].
        """

class SamplerOptions:
    """How to choose the next token; see kvik.Model.generate."""

    def __init__(self, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0, logit_bias: _Sequence[tuple[int, float]] = ..., seed: int = 0) -> None: ...

    @property
    def temperature(self) -> float: ...

    @property
    def top_k(self) -> int: ...

    @property
    def top_p(self) -> float: ...

    @property
    def min_p(self) -> float: ...

    @property
    def repetition_penalty(self) -> float: ...

    @property
    def logit_bias(self) -> list[tuple[int, float]]: ...

    @property
    def seed(self) -> int: ...

class Sampler:
    """The sampler of one sequence. One thread at a time."""

    def __init__(self, options: SamplerOptions, vocab_size: int) -> None: ...

    def observe(self, tokens: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None:
        """Count tokens that were not drawn here, for the repetition penalty."""

    def sample(self, logits: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> int:
        """Draw the next token from float32 logits [vocab_size]."""

    @property
    def steps(self) -> int:
        """Tokens drawn so far."""

class GenerateRequest:
    """One prompt and how to continue it."""

    def __init__(self, prompt: _Sequence[int], max_new_tokens: int, sampler: SamplerOptions, stop_ids: _Sequence[int]) -> None: ...

    @property
    def prompt(self) -> list[int]: ...

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def sampler(self) -> SamplerOptions: ...

    @property
    def stop_ids(self) -> list[int]: ...

class GenerateEvent:
    """A token that was just drawn, or the end of a request."""

    @property
    def request(self) -> int:
        """Index of the request."""

    @property
    def token(self) -> int:
        """The new token; -1: none, the request has ended."""

    @property
    def reason(self) -> str | None:
        """
        Why the request has ended: "length", "stop_id", "context" or "stopped"; None while it goes on.
        """

class Generator:
    """
    Generation one step at a time. One thread at a time; keeps its model alive.
    """

    def __init__(self, model: Model, requests: _Sequence[GenerateRequest]) -> None: ...

    @property
    def done(self) -> bool:
        """Whether every request has ended."""

    def step(self) -> list[GenerateEvent]:
        """
        Draw one token for every request that still runs. Runs Python's signal handlers now and then; what they raise comes through, and step() may be called again.
        """

    def stop(self, request: int) -> None:
        """End a request; it keeps its tokens."""

def beam_search(model: Model, prompts: _Sequence[numpy.typing.NDArray[numpy.int64]], sources: _Sequence[numpy.typing.NDArray[numpy.int64]] | None, beams: int, results: int, max_new_tokens: _Sequence[int], length_penalty: float, end_ids: _Sequence[int]) -> list[list[tuple[list[int], float, float, bool]]]:
    """
    The likeliest continuations of each prompt, given its source if there are any: tokens, log probability, score, and whether they ended.
    """

def active_isa() -> str:
    """The kernels in use: the best for this CPU, or what KVIK_ISA names."""

def available_isas() -> list[str]:
    """What KVIK_ISA may name on this CPU, slowest first."""

def read_bandwidth(bytes: int, threads: int, seconds: float = 0.3) -> float:
    """
    Bytes per second at which the threads together read a working set of this size.
    """

def bf16_peak(isa: str, threads: int, seconds: float = 0.2) -> float:
    """
    Operations per second on bfloat16 numbers, or in fp32 where an ISA widens them.
    """

def dot_peak(isa: str, threads: int, seconds: float = 0.2) -> float:
    """
    Operations per second on bytes, summed in 32 bits, with the instructions of an ISA.
    """

def fma_peak(isa: str, threads: int, seconds: float = 0.2) -> float:
    """
    fp32 operations per second that the threads reach together, operands in registers.
    """
