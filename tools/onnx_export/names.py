"""Names of tensors: how those of a checkpoint begin, and those that rotation.py adds."""

VISION, TEXT = "model.vision_model", "model.text_model"
ENTRANCE, SPREAD = "rotation", "spread"
