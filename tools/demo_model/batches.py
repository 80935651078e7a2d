"""Several questions share one scene's image tokens in one sequence; none sees the others."""

from dataclasses import dataclass

import torch

MASKED, SHARED = -1, 0


@dataclass
class Pack:
    ids: torch.Tensor  # [B, T]
    positions: torch.Tensor  # [B, T] restart after the shared prefix for every question
    mask: torch.Tensor  # [B, T, T]
    image_mask: torch.Tensor  # [B, T]
    rows: torch.Tensor  # flat positions whose next token is an answer's
    targets: torch.Tensor  # that next token
    tasks: torch.Tensor  # the question number of each target


def pack(encoder, grids, questions):
    """`questions`: for each scene, its Questions."""
    sequences = []
    for grid, asked in zip(grids, questions):
        prefix = encoder.prefix(grid)
        ids, positions, groups, targets = list(prefix), list(range(len(prefix))), [SHARED] * len(prefix), [MASKED] * len(prefix)
        for group, question in enumerate(asked, 1):
            asking, answer = encoder.question(question.question), encoder.answer(question.answer)
            tokens = asking + answer
            ids += tokens
            positions += range(len(prefix), len(prefix) + len(tokens))
            groups += [group] * len(tokens)
            targets += [MASKED] * (len(asking) - 1) + answer + [MASKED]
        sequences.append((ids, positions, groups, targets))
    longest = max(len(ids) for ids, *_ in sequences)
    filled = [torch.tensor([x + [fill] * (longest - len(x)) for x in column]) for column, fill in zip(zip(*sequences), (0, 0, MASKED, MASKED))]
    ids, positions, groups, targets = filled
    same = (groups[:, :, None] == groups[:, None, :]) | (groups[:, None, :] == SHARED)
    mask = same & torch.ones(longest, longest, dtype=torch.bool).tril()
    rows = (targets.flatten() != MASKED).nonzero().squeeze(1)
    scene, group = rows // longest, groups.flatten()[rows]
    most = max(len(asked) for asked in questions)
    return Pack(ids, positions, mask, ids == encoder.image_id, rows, targets.flatten()[rows], scene * most + group - 1)


def answer_logits(run, packed, image_rows):
    hidden = run.hidden(packed.ids, image_rows, packed.image_mask, packed.positions, packed.mask)
    return run.model.lm_head(hidden.flatten(0, 1)[packed.rows])


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
