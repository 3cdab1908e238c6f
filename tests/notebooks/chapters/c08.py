"""Chapter 08: what it defines, and what the library's versions are asked to compare with."""

import torch

OWN = {
    "as_a_number", "class_posterior", "ClassConditionedUnet", "draw", "fit", "heard", "mixed", "response", "shares",
    "show_matrices", "verdicts",
}  # fmt: skip


def embedded(ClassEmbedding):
    """The table, the vectors of a few labels, the null class among them, and whether labels out of range are refused."""
    torch.manual_seed(0)
    embedding = ClassEmbedding(10, 6)
    refused = 0
    for wrong in (-1, 11):
        try:
            embedding(torch.tensor([0, wrong]))
        except ValueError:
            refused += 1
    labels = torch.tensor([3, 0, embedding.null_class, 9, 3])
    return embedding.state_dict()["table.weight"], embedding(labels), torch.tensor([embedding.null_class, refused])


def dropped(drop_labels):
    """Labels after none, all, and some of them were dropped, by a generator of their own and by the global one."""
    y = torch.arange(200) % 10
    torch.manual_seed(1)
    return [drop_labels(y, 10, 0.0), drop_labels(y, 10, 1.0), drop_labels(y, 10, 0.2),
            drop_labels(y, 7, 0.5, torch.Generator().manual_seed(2))]  # fmt: skip


INPUTS = {"ClassEmbedding": embedded, "drop_labels": dropped}
