"""SemSynAN's decoder over CLIP features: concepts and syntax steer three compositional cells.

Perez-Martin et al. 2021, "Improving Video Captioning with Temporal Composition of a Visual-Syntactic Embedding" (WACV).
Its frame features, word vectors and training code are not to be had: what is here is its decoder and both embeddings
over CLIP's features, and no run of it is SemSynAN (docs/science.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.model.backbone import Backbone
from calmctl.model.calm import AlignedParts, Batch, Losses
from calmctl.model.captioner import PAD, Cache, CaptionDecoder, CaptionModel, CaptionVocabulary
from calmctl.recipe.schema import CaptionSection
from calmctl.runtime import require_packages

SYNTAX = 512
"""Width of the embedding of clips and tag sequences."""
MARGIN = 0.2
"""Of the triplet loss (our choice: the reference's is not known)."""

# Tags: what kind of word each word of a caption is.


TAGS = ("NOUN", "VERB", "ADJ", "ADV", "PRON", "DET", "ADP", "NUM", "CONJ", "PRT", ".", "X")
"""The twelve universal tags."""
_CONCEPTS = {"NOUN", "VERB", "ADJ"}
_PREFIXES = {
    "NN": "NOUN", "VB": "VERB", "MD": "VERB", "JJ": "ADJ", "RB": "ADV", "PRP": "PRON", "WP": "PRON", "DT": "DET",
    "WDT": "DET", "PDT": "DET", "EX": "DET", "IN": "ADP", "CD": "NUM", "CC": "CONJ", "RP": "PRT", "TO": "PRT",
    "POS": "PRT",
}  # fmt: skip
"""The Penn Treebank's tags by how they begin."""


def require_textblob() -> None:
    """Raise `BadInput` where TextBlob is not installed, which tells the kinds of words in captions."""
    require_packages(["textblob"], extra="syntax", what="caption.system: semsynan")


def tag_captions(captions: Sequence[str]) -> list[list[tuple[str, str]]]:
    """The words of each caption, lower case, with their universal tags, by TextBlob's PatternTagger.

    Raises:
        BadInput: TextBlob is not installed.
    """
    require_textblob()
    from textblob.en import tag

    return [[(word, _universal(kind)) for word, kind in tag(caption.lower())] for caption in captions]


def _universal(penn: str) -> str:
    universal = next((tag for prefix, tag in _PREFIXES.items() if penn.startswith(prefix)), "")
    return universal or ("." if not penn[:1].isalpha() else "X")


# The two embeddings: which concepts a clip shows, and how its sentence is built.


class ConceptHead(nn.Module):
    """How likely each of C concepts is in a clip, from its mean frame feature."""

    def __init__(self, dim: int, concepts: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, 1024), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1024, concepts))

    def forward(self, clips: Tensor) -> Tensor:
        """Logits [N, C] of mean features [N, D]."""
        return self.layers(clips)


class SyntaxEmbedding(nn.Module):
    """Clips and tag sequences as unit vectors of one space, in which a clip is near the tags of its captions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.clips = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(dim, 2048), nn.ReLU(), nn.Dropout(0.5), nn.Linear(2048, 1024), nn.ReLU(),
            # The reference ends with batch normalisation, under which a clip's embedding hangs on its batch.
            nn.Dropout(0.5), nn.Linear(1024, SYNTAX), nn.LayerNorm(SYNTAX),
        )  # fmt: skip
        self.tags = nn.Embedding(len(TAGS), 64)
        self.order = nn.GRU(64, SYNTAX // 2, batch_first=True, bidirectional=True)

    def of_clips(self, clips: Tensor) -> Tensor:
        """[N, 512] of mean features [N, D]."""
        return F.normalize(self.clips(clips), dim=-1)

    def of_tags(self, tags: Tensor) -> Tensor:
        """[N, 512] of tag numbers [N, L], `PAD` behind shorter ones."""
        lengths = (tags != PAD).sum(dim=1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.tags(tags.clamp(min=0)), lengths, batch_first=True, enforce_sorted=False
        )
        _, last = self.order(packed)
        return F.normalize(torch.cat([last[0], last[1]], dim=-1), dim=-1)


def syntax_loss(clips: Tensor, tags: Tensor, sequences: Tensor) -> Tensor:
    """Triplet loss with the hardest negative, both ways: max(0, margin - s_ii + max_j s_ij), mean over the batch.

    Captions whose tag `sequences` [N, L] are equal are no negatives of one another: in a batch there are many.
    """
    scores = clips @ tags.T
    same = (sequences[:, None] == sequences[None]).all(dim=-1)
    right = scores.diagonal()
    negatives = scores.masked_fill(same, -torch.inf)
    # A row whose batch has one sequence alone has no negative, and -inf makes its term 0.
    by_clip = F.relu(MARGIN - right + negatives.max(dim=1).values)
    by_tags = F.relu(MARGIN - right + negatives.max(dim=0).values)
    return (by_clip + by_tags).mean()


State = tuple[Tensor, Tensor]


class CompositionalCell(nn.Module):
    """An LSTM cell whose inputs are each multiplied by a meaning s, in every gate.

        a = [(x Wa) * (s Wb)] Wc + [(v Ca) * (s Cb)] Cc + [(h Ua) * (s Ub)] Uc + b

    with x the last word, v what is seen, h the cell's own state; the usual update follows.
    """

    def __init__(self, word: int, seen: int, meaning: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.inputs = nn.ModuleDict(
            {name: nn.Linear(size, 4 * width, bias=False) for name, size in (("x", word), ("v", seen), ("h", width))}
        )
        self.meanings = nn.ModuleDict({name: nn.Linear(meaning, 4 * width, bias=False) for name in "xvh"})
        self.outputs = nn.ParameterDict({name: nn.Parameter(torch.empty(4, width, width)) for name in "xvh"})
        self.bias = nn.Parameter(torch.zeros(4, width))
        layers: list[Any] = [*self.inputs.values(), *self.meanings.values()]
        for layer in layers:
            for gate in layer.weight.chunk(4):
                nn.init.xavier_normal_(gate)
        for matrix in self.outputs.values():
            for gate in matrix:
                nn.init.xavier_normal_(gate)

    def prepare(self, seen: Tensor, meaning: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What stays the same for a whole sentence: s Wb and s Ub [N, 4, W], and the part of v with b, [N, 4, W]."""
        by_x, by_v, by_h = (self._gates(self.meanings[name](meaning)) for name in "xvh")
        return by_x, by_h, self._out(self._gates(self.inputs["v"](seen)) * by_v, "v") + self.bias

    def forward(self, word: Tensor, state: State, prepared: tuple[Tensor, Tensor, Tensor]) -> State:
        """The next hidden and cell state [N, W] each, after `word` [N, X]."""
        by_x, by_h, fixed = prepared
        hidden, cell = state
        gates = fixed + self._out(self._gates(self.inputs["x"](word)) * by_x, "x")
        gates = gates + self._out(self._gates(self.inputs["h"](hidden)) * by_h, "h")
        enter, forget, leave, new = gates.unbind(dim=1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * cell.tanh(), cell

    def _gates(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], 4, self.width)

    def _out(self, x: Tensor, name: str) -> Tensor:
        return torch.einsum("ngw,gwh->ngh", x, self.outputs[name])


class SemSynDecoder(CaptionDecoder):
    """Words from frames, concepts and syntax: a cell a pair of these, merged anew for each word.

    Its memory is one row a clip, [N, F D + D + C + 512]: frames, their mean, concept probabilities, syntax embedding.
    """

    def __init__(self, keys: CaptionSection, dim: int, frames: int, word: int, vocabulary: CaptionVocabulary) -> None:
        """Cells of `keys.width` over `frames` features of width `dim`, and words of width `word`."""
        super().__init__(vocabulary, keys.max_tokens)
        width = keys.width
        self.sizes = [frames * dim, dim, keys.concepts, SYNTAX]
        self.width, self.frames = width, frames
        self.concepts = ConceptHead(dim, keys.concepts)
        self.syntax = SyntaxEmbedding(dim)
        self.tokens = nn.Embedding(len(vocabulary), word)
        # By what is seen and what it means: v and s of the cell's formula.
        pairs = {"both": ("vs", "ve", "se"), "concepts": ("vs",), "syntax": ("ve",)}[keys.semantics]
        sizes = dict(zip("vse", (dim, keys.concepts, SYNTAX), strict=True))
        self.cells: Any = nn.ModuleDict({p: CompositionalCell(word, sizes[p[0]], sizes[p[1]], width) for p in pairs})
        # Content-free: the weights hang on the states and on a frame's place, not on what it shows. Frames steer the
        # merging alone, which a single cell does not need.
        attend = (nn.Linear(len(pairs) * width, dim), nn.Linear(dim, frames, bias=False)) if len(pairs) > 1 else ()
        self.attend = nn.Sequential(*attend)
        self.merge = nn.ModuleList(nn.Linear(width + dim, width) for _ in range(len(pairs) - 1))
        self.output = nn.Linear(width, len(vocabulary), bias=False)
        self.output_bias = nn.Parameter(torch.zeros(len(vocabulary)))
        self.dropout = nn.Dropout(keys.dropout)
        for layer in (*self.attend, *self.merge, self.output):
            nn.init.xavier_normal_(layer.weight)

    def encode(self, frames: Tensor) -> Tensor:
        """The memory [N, M] of frame features [N, F, D].

        Captions teach neither concepts nor syntax: each is learned by its own loss (the reference trains them before).
        """
        mean = frames.mean(dim=1)
        concepts, syntax = self.concepts(mean).sigmoid().detach(), self.syntax.of_clips(mean).detach()
        return torch.cat([frames.flatten(1), mean, concepts, syntax], dim=1)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Logits [N, T, V] of the token after each prefix of `tokens` [N, T]."""
        cache = self.start_cache(memory)
        return torch.stack([self.step(column, cache) for column in tokens.unbind(dim=1)], dim=1)

    def start_cache(self, memory: Tensor) -> Cache:
        """All states zero."""
        frames, seen, concepts, syntax = torch.split(memory, self.sizes, dim=1)
        inputs = {"v": seen, "s": concepts, "e": syntax}
        prepared = [cell.prepare(inputs[pair[0]], inputs[pair[1]]) for pair, cell in self.cells.items()]
        zero = memory.new_zeros(len(memory), self.width)
        # The frames stand last, and the merged state behind the cells' own.
        return Cache([*prepared, (frames,)], [*((zero, zero) for _ in prepared), (zero,)])

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits [N, V] after the newest `tokens` [N]."""
        # The first input is zero.
        word = self.dropout(self.tokens(tokens)) * (tokens != self.vocabulary.start)[:, None]
        states: list[Any] = [
            cell(word, state, prepared)
            for cell, state, prepared in zip(self.cells.values(), cache.past[:-1], cache.memory[:-1], strict=True)
        ]
        hidden = [state[0] for state in states]
        merged, (last,) = hidden[0], cache.past[-1]  # type: ignore[misc]
        if len(self.merge):
            frames = cache.memory[-1][0].view(len(word), self.frames, -1)
            shares = self.attend(torch.cat(hidden, dim=1)).softmax(dim=1)
            # Divided by their number once more, as the reference has it.
            before = torch.cat([last, torch.einsum("nf,nfd->nd", shares, frames) / self.frames], dim=1)
            for gate, other in zip(self.merge, hidden[1:], strict=True):
                share = gate(before).sigmoid()
                merged = share * merged + (1 - share) * other
        cache.past = [*states, (merged,)]
        cache.length += 1
        assert self.output is not None
        return self.output(self.dropout(merged)) + self.output_bias


class SemSynModel(CaptionModel):
    """The decoder with the losses of its two embeddings, all learned side by side in one training.

    Attributes:
        concept_words: The C concepts or fewer; known in training alone.
    """

    captioner: SemSynDecoder
    concept_words: tuple[str, ...] = ()

    def __init__(self, backbone: Backbone, captioner: SemSynDecoder, keys: CaptionSection, parts: AlignedParts) -> None:
        super().__init__(backbone, captioner, keys, parts)
        self._tags: dict[str, list[int]] = {}
        self._shown = torch.empty(0)

    def learn_from(self, captions: Sequence[str], owners: Sequence[int]) -> None:
        """Take the concepts from training captions: their most frequent nouns, verbs and adjectives.

        `owners` has for each the number of its clip, as `Batch.clips` has it.

        Raises:
            BadInput: TextBlob is not installed.
        """
        tagged = tag_captions(captions)
        self._tags = {
            caption: [TAGS.index(tag) for _, tag in words] for caption, words in zip(captions, tagged, strict=True)
        }
        counts = Counter(word for words in tagged for word, tag in words if tag in _CONCEPTS)
        # Ties by the alphabet: the same concepts whatever the order of the clips.
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        self.concept_words = tuple(ranked[: self.caption_keys.concepts])
        numbers = {word: number for number, word in enumerate(self.concept_words)}
        self._shown = torch.zeros(max(owners, default=-1) + 1, self.caption_keys.concepts)
        for words, owner in zip(tagged, owners, strict=True):
            for word, _ in words:
                if word in numbers:
                    self._shown[owner, numbers[word]] = 1

    def caption_tokens(self, sentences: Sequence[str]) -> Tensor:
        """The sentences as tokens and as tags, [N, 2, T]."""
        tokens = super().caption_tokens(sentences)
        tags = [self._tags[sentence] for sentence in sentences]
        length = max(tokens.shape[1], *map(len, tags), 1)
        both = torch.full((len(sentences), 2, length), PAD)
        both[:, 0, : tokens.shape[1]] = tokens
        for row, numbers in enumerate(tags):
            both[row, 1, : len(numbers)] = torch.tensor(numbers, dtype=torch.long)
        return both

    def losses_of(self, batch: Batch, frames: Tensor) -> Losses:
        """The losses of one step: those of any captioner, + BCE of the concepts + the syntax's triplet loss."""
        if batch.captions is None:
            raise ValueError("a captioning batch needs the captions' tokens")
        tokens, tags = batch.captions.unbind(dim=1)
        tokens = tokens[:, : int((tokens != PAD).sum(dim=1).max())]
        losses = super().losses_of(replace(batch, captions=tokens), frames)
        # Nothing but themselves learns from these: the reference's features are fixed.
        mean = frames.mean(dim=1).detach()
        wanted, world = self._shown.to(mean)[batch.clips], self.world
        concepts = F.binary_cross_entropy_with_logits(self.captioner.concepts(mean), wanted)
        losses.parts["concepts"] = world.mean(concepts)
        # The hardest negative is looked for in the whole batch, whoever has it. Parts are as long as their longest.
        syntax, length = self.captioner.syntax, max(world.gather_objects(tags.shape[1]))
        rows = syntax.of_clips(mean), syntax.of_tags(tags), F.pad(tags, (0, length - tags.shape[1]), value=PAD)
        losses.parts["syntax"] = syntax_loss(*map(world.gather, rows))
        losses.total = losses.total + losses.parts["concepts"] + losses.parts["syntax"]
        losses.parts["loss"] = losses.total
        return losses
