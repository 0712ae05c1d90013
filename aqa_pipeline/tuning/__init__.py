"""Fine-tuning in parts; :mod:`aqa_pipeline.finetune` is the stage made of them."""
