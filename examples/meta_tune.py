"""Meta-tune sparse interpolated experts over many few-shot tasks.

Why: a pre-trained vision model classifies a new task from a few images by comparing features. Meta-tuning prepares it
for that on domains with many classes, and the experts let it keep what it can on domains nobody trained for.

The demo, a few minutes on two CPU cores, without network:

    accelerate launch examples/meta_tune.py

One's own images, a folder of domains with a folder for each class:

    accelerate launch examples/meta_tune.py --model_name_or_path facebook/dinov2-small \
        --train_domains "folder:data/train/*" --ood_domains "folder:data/other/*" --output_dir outputs/mine

All arguments: python examples/meta_tune.py --help
"""

from smat_peft.commands.meta_tune import main

if __name__ == "__main__":
    raise SystemExit(main())
