"""A second, smaller model drafts: it reads along and says what it would say next.

What it says is warped by the request's own controls and, under a rule that compares tokens, drawn with the
target's own noise: at any temperature it proposes the token that plain decoding would emit if the target
were the draft model. Models with different tokenizers meet at the tokens that both have.

Sources: Leviathan, Kalman and Matias, 2023 (arXiv 2211.17192), and Chen et al., 2023 (arXiv 2302.01318), for
draft models; Timor et al., 2025 (arXiv 2502.05202), for the shared tokens of two vocabularies (TLI);
Spector and Re, 2023 (arXiv 2308.04623), for a drafter that drafts for the draft model; Kavehzadeh et al.,
2024 (arXiv 2407.01955), for sub-drafts. The coupling by noise of positions is our own.
"""

from __future__ import annotations

from paceline.core import Drafter, TargetInfo
from paceline.drafters import load
from paceline.drafters._ahead import Ahead, Foresight
from paceline.drafters._companion import Companion, LoadModel
from paceline.drafters._model import ModelDrafter, Scorer
from paceline.drafters._options import parse_growth
from paceline.drafters._vocabulary import SharedTokens, Spelling, same_tokens
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.transcript import Tokenizer

VOCABULARIES = ("same", "shared")


def build(
    info: TargetInfo,
    load_model: LoadModel,
    tokenizer: Tokenizer,
    *,
    model: str = "",
    widths: str = "1x1x1x1",
    min_probability: float = 0.3,
    drawn: str = "iid",
    vocabulary: str = "same",
    drafter: str = "none",
    threads: int = 0,
    device: str = "",
    layers: int = 0,
    ahead: int = 0,
    wait: bool = True,
) -> Drafter:
    """A second model as drafter.

    model            a known model's name, a file, or a folder, such as one that was trained for the target
    widths           children of a node on each level: 1x1x1 is a chain of three tokens, 2x2x1 a tree
    min_probability  a token is drafted only where the likeliest path through it is likelier than this
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"
    vocabulary       "same": both models must have the same tokens; "shared": tokens that both have are
                     proposed
    drafter          another drafter that drafts for the draft model
    threads          of the draft model on the native target; 0: as many as the target has
    device           of the draft model on PyTorch, such as cpu or cuda:1; empty: as PyTorch models are loaded
    layers           of the draft model that are run, the first ones: a sub-draft of a model that was trained
                     to be read out there, too; 0: all
    ahead            outcomes of a pass for which the next draft is made while the target computes; 0: none
    wait             with ahead: whether a request whose text was not foreseen waits for its draft; otherwise
                     its next token is verified alone meanwhile

    Raises ConfigError for a value out of range, IncompatibleDrafter for a model or drafter that does not
    fit, ModelFileError for the model's file.
    """
    growth = parse_growth("draft", widths, min_probability, drawn)
    if vocabulary not in VOCABULARIES:
        raise ConfigError(f"draft:vocabulary must be {' or '.join(VOCABULARIES)}, got {vocabulary!r}")
    if vocabulary == "shared" and drafter != "none":
        raise ConfigError(f"draft:drafter needs draft:vocabulary=same, got {drafter} and shared")
    if not model:
        raise ConfigError("draft:model must name a model, as in draft:model=NAME or draft:model=FILE")
    for name, value in (("layers", layers), ("ahead", ahead)):
        if value < 0:
            raise ConfigError(f"draft:{name} must be at least 0, got {value}")
    if ahead and drafter != "none":
        raise ConfigError(f"draft:ahead needs draft:drafter=none, got {drafter}")
    if not ahead and not wait:
        raise ConfigError("draft:wait=false needs draft:ahead of at least 1")
    guesser = _guesser(drafter, info)
    companion, own = load_model(model, threads=threads or None, device=device or None, layers=layers or None)
    scorer: Scorer = Companion(companion)
    if vocabulary == "shared":
        if own is None:
            raise IncompatibleDrafter(f"draft:vocabulary=shared needs a tokenizer, and {model} has none")
        scorer = SharedTokens(Companion(companion), Spelling(tokenizer, own), info.vocab_size)
    elif companion.info.vocab_size != info.vocab_size or (own and not same_tokens(tokenizer, own)):
        raise IncompatibleDrafter(
            f"draft: {companion.info.name} and {info.name} have different tokens; "
            "use draft:vocabulary=shared, or the drafter slem"
        )
    if not ahead:
        return ModelDrafter(scorer, growth, guesser)
    foresight = Foresight(scorer)
    return Ahead(ModelDrafter(foresight, growth), foresight, ahead, wait)


def _guesser(spec: str, info: TargetInfo) -> Drafter | None:
    """The drafter that drafts for the draft model."""
    if spec == "none":
        return None
    guesser = load(spec, info)
    if guesser.needs:
        raise IncompatibleDrafter(
            f"draft:drafter={spec} needs {', '.join(sorted(guesser.needs))}, which draft models do not give"
        )
    return guesser
