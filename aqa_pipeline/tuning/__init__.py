"""Fine-tuning in parts; :mod:`aqa_pipeline.finetune.run` is the stage made of them."""
