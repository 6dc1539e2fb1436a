"""llama.cpp itself as the oracle: a GGUF and token ids come in, logits go out; text comes in, token ids go out.

ctypes over libllama of the vendored version.  The two parameter structures are passed by value, so their layout must be
that of its llama.h; `LibLlama` checks the defaults it gets back before it uses them.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

_F32 = 0  # GGML_TYPE_F32
_F16 = 1  # GGML_TYPE_F16
_FLASH_ATTENTION_OFF = 0
_POOLING_NONE = 0
_LOG = ct.CFUNCTYPE(None, ct.c_int, ct.c_char_p, ct.c_void_p)
_CALLBACKS: list[Any] = []  # the library holds on to its log function for the life of the process


class _ModelParams(ct.Structure):
    """`struct llama_model_params`."""

    _fields_: ClassVar[Any] = [
        ("devices", ct.c_void_p),
        ("tensor_buft_overrides", ct.c_void_p),
        ("n_gpu_layers", ct.c_int32),
        ("split_mode", ct.c_int32),
        ("load_mode", ct.c_int32),
        ("lazy_mode", ct.c_int32),
        ("main_gpu", ct.c_int32),
        ("tensor_split", ct.c_void_p),
        ("progress_callback", ct.c_void_p),
        ("progress_callback_user_data", ct.c_void_p),
        ("kv_overrides", ct.c_void_p),
        ("vocab_only", ct.c_bool),
        ("check_tensors", ct.c_bool),
        ("use_extra_bufts", ct.c_bool),
        ("no_host", ct.c_bool),
        ("no_alloc", ct.c_bool),
        ("load_mtp", ct.c_bool),
    ]


class _ContextParams(ct.Structure):
    """`struct llama_context_params`."""

    _fields_: ClassVar[Any] = [
        ("n_ctx", ct.c_uint32),
        ("n_batch", ct.c_uint32),
        ("n_ubatch", ct.c_uint32),
        ("n_seq_max", ct.c_uint32),
        ("n_rs_seq", ct.c_uint32),
        ("n_outputs_max", ct.c_uint32),
        ("n_outputs_max_per_seq", ct.c_uint32),
        ("n_threads", ct.c_int32),
        ("n_threads_batch", ct.c_int32),
        ("ctx_type", ct.c_int32),
        ("rope_scaling_type", ct.c_int32),
        ("pooling_type", ct.c_int32),
        ("attention_type", ct.c_int32),
        ("flash_attn_type", ct.c_int32),
        ("rope_freq_base", ct.c_float),
        ("rope_freq_scale", ct.c_float),
        ("yarn_ext_factor", ct.c_float),
        ("yarn_attn_factor", ct.c_float),
        ("yarn_beta_fast", ct.c_float),
        ("yarn_beta_slow", ct.c_float),
        ("yarn_orig_ctx", ct.c_uint32),
        ("defrag_thold", ct.c_float),
        ("cb_eval", ct.c_void_p),
        ("cb_eval_user_data", ct.c_void_p),
        ("type_k", ct.c_int32),
        ("type_v", ct.c_int32),
        ("abort_callback", ct.c_void_p),
        ("abort_callback_data", ct.c_void_p),
        ("embeddings", ct.c_bool),
        ("offload_kqv", ct.c_bool),
        ("no_perf", ct.c_bool),
        ("op_offload", ct.c_bool),
        ("swa_full", ct.c_bool),
        ("kv_unified", ct.c_bool),
        ("samplers", ct.c_void_p),
        ("n_samplers", ct.c_size_t),
        ("ctx_other", ct.c_void_p),
    ]


class _Batch(ct.Structure):
    """`struct llama_batch`; positions and sequence ids stay null: one sequence, positions counted from 0."""

    _fields_: ClassVar[Any] = [
        ("n_tokens", ct.c_int32),
        ("token", ct.POINTER(ct.c_int32)),
        ("embd", ct.c_void_p),
        ("pos", ct.c_void_p),
        ("n_seq_id", ct.c_void_p),
        ("seq_id", ct.c_void_p),
        ("logits", ct.POINTER(ct.c_int8)),
    ]


# Only what is used: name -> (result, arguments).
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_log_set": (None, [_LOG, ct.c_void_p]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (_ModelParams, []),
    "llama_context_default_params": (_ContextParams, []),
    "llama_model_load_from_file": (ct.c_void_p, [ct.c_char_p, _ModelParams]),
    "llama_model_free": (None, [ct.c_void_p]),
    "llama_model_get_vocab": (ct.c_void_p, [ct.c_void_p]),
    "llama_model_n_embd_out": (ct.c_int32, [ct.c_void_p]),
    "llama_vocab_n_tokens": (ct.c_int32, [ct.c_void_p]),
    "llama_init_from_model": (ct.c_void_p, [ct.c_void_p, _ContextParams]),
    "llama_free": (None, [ct.c_void_p]),
    "llama_encode": (ct.c_int32, [ct.c_void_p, _Batch]),
    "llama_decode": (ct.c_int32, [ct.c_void_p, _Batch]),
    "llama_get_logits": (ct.POINTER(ct.c_float), [ct.c_void_p]),
    "llama_get_embeddings": (ct.POINTER(ct.c_float), [ct.c_void_p]),
    "llama_tokenize": (
        ct.c_int32,
        [ct.c_void_p, ct.c_char_p, ct.c_int32, ct.POINTER(ct.c_int32), ct.c_int32, ct.c_bool, ct.c_bool],
    ),
    "llama_detokenize": (
        ct.c_int32,
        [ct.c_void_p, ct.POINTER(ct.c_int32), ct.c_int32, ct.c_char_p, ct.c_int32, ct.c_bool, ct.c_bool],
    ),
}


def mean_kl(reference: np.ndarray, got: np.ndarray) -> float:
    """Return the mean Kullback-Leibler divergence KL(reference || got) of logits over all positions, in nats."""
    p, q = (_log_softmax(np.asarray(x, np.float64)) for x in (reference, got))
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    total: np.ndarray = np.exp(shifted).sum(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(total))


class LibLlama:
    """The shared library libllama at the path *library*.

    Every computation is exact and repeatable: CPU, one thread, KV cache in float32, no flash attention, one decode for
    each prompt with all logits.  llama.cpp's log is kept quiet; its last lines are part of an error's message.
    """

    def __init__(self, library: Path) -> None:
        self._lib = ct.CDLL(str(library))
        for function, (result, arguments) in _SIGNATURES.items():
            getattr(self._lib, function).restype = result
            getattr(self._lib, function).argtypes = arguments
        self._log_lines: list[str] = []
        _CALLBACKS.append(_LOG(self._keep_log))
        self._lib.llama_log_set(_CALLBACKS[-1], None)
        self._lib.llama_backend_init()
        self._check_layout()
        self._vocab: tuple[tuple[object, ...], int] | None = None  # the last one, for many short texts

    def logits(self, gguf: Path, input_ids: np.ndarray, *, n_ctx: int = 256) -> np.ndarray:
        """Return logits, float32 (n_seq, n_tok, n_vocab), of *input_ids*, integers (n_seq, n_tok)."""
        with self._model(gguf) as model:
            n_vocab = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(model))
            return np.stack([self._run(model, row, n_vocab, n_ctx) for row in np.atleast_2d(input_ids)])

    def seq2seq_logits(self, gguf: Path, input_ids: np.ndarray, decoder_ids: np.ndarray) -> np.ndarray:
        """Return the decoder's logits, float32 (n_seq, n_dec, n_vocab), of an encoder-decoder model."""
        with self._model(gguf) as model:
            n_vocab = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(model))
            pairs = zip(np.atleast_2d(input_ids), np.atleast_2d(decoder_ids), strict=True)
            return np.stack([self._run(model, row, n_vocab, 256, encoder_ids=source) for source, row in pairs])

    def hidden_states(self, gguf: Path, input_ids: np.ndarray) -> np.ndarray:
        """Return the last hidden states of an encoder, float32 (n_seq, n_tok, n_embd), without pooling."""
        with self._model(gguf) as model:
            n_embd = self._lib.llama_model_n_embd_out(model)
            return np.stack([self._run(model, row, n_embd, 256, embeddings=True) for row in np.atleast_2d(input_ids)])

    def tokenize(self, gguf: Path, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Return the token ids of *text*."""
        vocab = self._vocab_of(gguf)
        data = text.encode("utf-8")

        def call(ids: Any, room: int) -> int:
            return int(self._lib.llama_tokenize(vocab, data, len(data), ids, room, add_special, parse_special))

        room = max(16, -call(None, 0))
        ids = (ct.c_int32 * room)()
        n = call(ids, room)
        if n < 0:
            raise RuntimeError(f"llama_tokenize gave {n} for {text!r}")
        return list(ids[:n])

    def detokenize(self, gguf: Path, ids: list[int], *, special: bool = False) -> bytes:
        """Return the bytes of the text of *ids*; *special* keeps control tokens visible."""
        vocab = self._vocab_of(gguf)
        tokens = (ct.c_int32 * len(ids))(*ids)

        def call(text: Any, room: int) -> int:
            return int(self._lib.llama_detokenize(vocab, tokens, len(ids), text, room, False, special))

        room = max(16, -call(None, 0))
        text = ct.create_string_buffer(room)
        n = call(text, room)
        if n < 0:
            raise RuntimeError(f"llama_detokenize gave {n} for {ids}")
        return text.raw[:n]

    def close(self) -> None:
        """Free the vocabulary that is kept between calls."""
        if self._vocab is not None:
            self._lib.llama_model_free(self._vocab[1])
            self._vocab = None

    def _keep_log(self, _level: int, text: bytes, _data: object) -> None:
        self._log_lines = [*self._log_lines[-20:], text.decode("utf-8", "replace")]

    def _check_layout(self) -> None:
        context, model = self._lib.llama_context_default_params(), self._lib.llama_model_default_params()
        found = (
            (context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max),
            (context.type_k, context.type_v, context.n_samplers, context.ctx_other),
            (context.offload_kqv, context.rope_scaling_type, context.flash_attn_type),
            (model.vocab_only, model.use_extra_bufts, model.no_alloc, model.kv_overrides),
        )
        expected = ((512, 2048, 512, 1), (_F16, _F16, 0, None), (True, -1, -1), (False, True, False, None))
        if found != expected:
            raise RuntimeError(f"the structures here are not those of this libllama: {found}, not {expected}")

    def _load(self, gguf: Path, *, vocab_only: bool) -> int:
        params = self._lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        self._log_lines = []
        model = self._lib.llama_model_load_from_file(str(gguf).encode(), params)
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {gguf}:\n" + "".join(self._log_lines))
        return int(model)

    @contextlib.contextmanager
    def _model(self, gguf: Path) -> Iterator[int]:
        model = self._load(gguf, vocab_only=False)
        try:
            yield model
        finally:
            self._lib.llama_model_free(model)

    def _vocab_of(self, gguf: Path) -> int:
        stat = gguf.stat()
        key = (gguf, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if self._vocab is None or self._vocab[0] != key:
            self.close()
            self._vocab = (key, self._load(gguf, vocab_only=True))
        return int(self._lib.llama_model_get_vocab(self._vocab[1]))

    def _run(
        self,
        model: int,
        ids: np.ndarray,
        width: int,
        n_ctx: int,
        *,
        encoder_ids: np.ndarray | None = None,
        embeddings: bool = False,
    ) -> np.ndarray:
        """Decode one prompt in a context of its own; the result is float32 (n_tok, width)."""
        context = self._lib.llama_init_from_model(model, self._context_params(n_ctx, embeddings))
        if not context:
            raise RuntimeError("llama.cpp cannot make a context:\n" + "".join(self._log_lines))
        try:
            if encoder_ids is not None:
                self._call(self._lib.llama_encode, context, encoder_ids)
            self._call(self._lib.llama_decode, context, ids)
            get = self._lib.llama_get_embeddings if embeddings else self._lib.llama_get_logits
            return np.ctypeslib.as_array(get(context), (len(ids), width)).copy()
        finally:
            self._lib.llama_free(context)

    def _call(self, function: Any, context: int, ids: np.ndarray) -> None:
        n = len(ids)
        tokens = (ct.c_int32 * n)(*(int(i) for i in ids))
        wanted = (ct.c_int8 * n)(*([1] * n))
        status = function(context, _Batch(n_tokens=n, token=tokens, logits=wanted))
        if status != 0:
            raise RuntimeError(f"{function.__name__} gave {status}:\n" + "".join(self._log_lines))

    def _context_params(self, n_ctx: int, embeddings: bool) -> _ContextParams:
        params: _ContextParams = self._lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = _F32
        params.flash_attn_type = _FLASH_ATTENTION_OFF
        params.swa_full = False
        params.embeddings = embeddings
        if embeddings:
            params.pooling_type = _POOLING_NONE
        return params
