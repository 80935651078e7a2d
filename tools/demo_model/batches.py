"""Several conversations about one scene share its image tokens in one sequence; none sees the others."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

MASKED, SHARED = -1, 0
FOLLOW_UP_SHARE, LONGEST_CONVERSATION = 0.3, 4


@dataclass
class Pack:
    ids: torch.Tensor  # [B, T]
    positions: torch.Tensor  # [B, T] restart after the shared prefix for every question
    mask: torch.Tensor  # [B, T, T]
    image_mask: torch.Tensor  # [B, T]
    rows: torch.Tensor  # flat positions whose next token is an answer's
    targets: torch.Tensor  # that next token
    tasks: torch.Tensor  # the question number of each target


def _conversations(asked, rng):
    """Splits a scene's questions into conversations; most have one question."""
    conversations = []
    for number, question in enumerate(asked):
        if number == 0 or len(conversations[-1]) == LONGEST_CONVERSATION or rng.random() > FOLLOW_UP_SHARE:
            conversations.append([])
        conversations[-1].append((number, question))
    return conversations


def pack(encoder, grids, questions, rng):
    """`questions`: for each scene, its Questions."""
    sequences = []
    for grid, asked in zip(grids, questions):
        prefix = encoder.prefix(grid)
        ids, positions, groups = list(prefix), list(range(len(prefix))), [SHARED] * len(prefix)
        targets, numbers = [MASKED] * len(prefix), [0] * len(prefix)
        for group, conversation in enumerate(_conversations(asked, rng), 1):
            start = len(ids)
            for turn, (number, question) in enumerate(conversation):
                asking, answer = encoder.question(question.question, follows=turn > 0), encoder.answer(question.answer)
                ids += asking + answer
                # The token before the answer predicts its first token; the answer's last predicts nothing.
                targets += [MASKED] * (len(asking) - 1) + answer + [MASKED]
                numbers += [number] * (len(asking) + len(answer))
            length = len(ids) - start
            positions += range(len(prefix), len(prefix) + length)
            groups += [group] * length
        sequences.append((ids, positions, groups, targets, numbers))
    longest = max(len(ids) for ids, *_ in sequences)
    filled = [torch.tensor([x + [fill] * (longest - len(x)) for x in column]) for column, fill in zip(zip(*sequences), (0, 0, MASKED, MASKED, 0))]
    ids, positions, groups, targets, numbers = filled
    same = (groups[:, :, None] == groups[:, None, :]) | (groups[:, None, :] == SHARED)
    mask = same & torch.ones(longest, longest, dtype=torch.bool).tril()
    rows = (targets.flatten() != MASKED).nonzero().squeeze(1)
    scene, number = rows // longest, numbers.flatten()[rows]
    most = max(len(asked) for asked in questions)
    return Pack(ids, positions, mask, ids == encoder.image_id, rows, targets.flatten()[rows], scene * most + number)


def answer_logits(run, packed, image_rows):
    hidden = run.hidden(packed.ids, image_rows, packed.image_mask, packed.positions, packed.mask)
    return run.model.lm_head(hidden.flatten(0, 1)[packed.rows])


def answer_loss(logits, packed):
    """Cross-entropy in which every question counts the same: of a list's many tokens most are easy, of a colour's two none."""
    share = 1 / torch.bincount(packed.tasks).clamp(min=1)[packed.tasks]
    return (F.cross_entropy(logits, packed.targets, reduction="none") * share).sum() / share.sum()


@torch.no_grad()
def right_answers(logits, packed, questions):
    """Per task, the share of questions whose every answer token would be chosen."""
    wrong = torch.zeros(len(questions) * max(map(len, questions)))
    wrong.index_add_(0, packed.tasks, (logits.argmax(-1) != packed.targets).float())
    wrong, seen = wrong.view(len(questions), -1), {}
    for scene, asked in enumerate(questions):
        for number, question in enumerate(asked):
            seen.setdefault(question.task, []).append(float(wrong[scene, number] == 0))
    return {task: sum(hits) / len(hits) for task, hits in sorted(seen.items())}
