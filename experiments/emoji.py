r"""Animated people who do something, from captions, and from a first frame: a person of some skin tone, and an action.

  npm pack @lobehub/fluent-emoji-anim-1@1.0.0 @lobehub/fluent-emoji-anim-2@1.0.0 \
    @lobehub/fluent-emoji-anim-3@1.0.0 @lobehub/fluent-emoji-anim-4@1.0.0
  python -m data_pipelines.emoji *.tgz --still "standing person" --out films/emoji
  vdt ingest films/emoji --out data/emoji --size 32 --fps 6 --frames 8 --stride 100 --format png \
    --captions films/emoji/captions.csv --test-sources films/emoji/held_out.txt
  vdt train --config experiments/emoji.py:demo --workdir runs/emoji

990 animations, a clip each: 55 actions of 3 people in 6 tones; of each person and action one tone is held out, so that
a test clip's person and tone are known, and its action, and not together. A clip begins with its person standing, and
has two captions, of which training draws one: who does what ("a man with medium skin, rocket"), and the action alone.
`seen` and `text` are prompts of the first kind, and nothing else. `together` has the first frame of a held-out clip,
which shows who, and a prompt of the action alone; and looks what becomes of it with another clip's prompt, or frame.
Variants: full (16 frames of 64 x 64, for an accelerator; ingest with --size 64 --frames 16 --fps 12),
demo (8 frames of 32 x 32 in patches of 8, an hour on a CPU core), tiny (the demo's shape, seconds, learns little).

Measured, demo, one run of 44 minutes on one core that did other work as well, 165 clips, a film each, with 95 %
intervals; of real clips, and with the captions of others (chance); a run before, elsewhere, was within 0.03 of it:

  prompts alone, held out    samples              real   shuffled      of training captions
  person (of 3)              0.94 (0.89, 0.97)    0.99   0.33          0.93
  tone (of 6)                0.80 (0.73, 0.85)    0.90   0.16          0.83
  action (of 55)             1.00 (0.98, 1.00)    1.00   0.01          0.99
  all three                  0.74 (0.67, 0.80)    0.89   0.00          0.75

  first frame and action     samples              real   shuffled      another prompt       another frame
  person                     0.58 (0.51, 0.65)    0.92   0.32          0.58 (0.50, 0.65)    0.36 (0.29, 0.44)
  tone                       0.44 (0.37, 0.52)    0.84   0.20          0.57 (0.49, 0.64)    0.13 (0.09, 0.19)
  action                     1.00 (0.98, 1.00)    1.00   0.01          0.01 (0.00, 0.03)    1.00 (0.98, 1.00)

Another prompt takes the action alone (the tone is then seen a little more often), another frame who it is alone.
The first frame itself, held still, shows the action in 0.02 of clips.
"""

from data_pipelines.clips import Clips
from data_pipelines.emoji import PEOPLE, PLAIN, TONES
from data_pipelines.tokenizer import Pieces
from vdt.config import AdamW, Config, Muon
from vdt.diffusion import RectifiedFlow, Sampler, Tasks
from vdt.evals.prompts import Prompts
from vdt.evals.val_loss import ValLoss
from vdt.models import T5Config, TransformerConfig

ACTIONS = (
  *("baby bottle", "bearded person", "bicyclist", "bride with veil", "construction worker", "cooking", "ear of rice"),
  *("elf", "face massage", "face palm", "face with no good gesture", "face with ok gesture", "fairy", "fire engine"),
  *("golfer", "graduation cap", "guardsman", "haircut", "handball", "happy person raising one hand"),
  *("information desk person", "juggling", "mage", "man in tuxedo", "man with turban", "merperson", "microscope"),
  *("motorized wheelchair", "mountain bicyclist", "pedestrian", "person bowing deeply", "person climbing"),
  *("person doing cartwheel", "person frowning", "person in lotus position", "person with ball"),
  *("person with blond hair", "person with pouting face", "police officer", "probing cane", "rocket", "rowboat"),
  *("runner", "scales", "school", "shrug", "sleuth or spy", "staff of aesculapius", "superhero"),
  *("supervillain", "surfer", "swimmer", "vampire", "weight lifter", "wrench"),
)
SAYS = (
  ("person", tuple(f"a {each}" for each in PEOPLE.values()), "appearance"),
  ("tone", tuple(f"with {each} skin" for each in (PLAIN, *TONES.values())), "appearance"),
  ("action", tuple(f"skin, {each}" for each in ACTIONS), "appearance"),
)


def get_config(variant: str = "full") -> Config:
  together = dict(task="first_frame", given_frames=1, caption=1, swapped=("caption", "video"))
  judged = dict(count=165, judged_by=825)
  config = Config(
    steps=100_000,
    data=Clips(name="emoji", frames=16, size=(64, 64), batch_size=64),
    text=Pieces(length=24, vocabulary=512),
    model=TransformerConfig.sized("S", patch=(1, 4, 4), pattern=(("space", "text"), ("time",)), text=256, pooled=True),
    diffusion=RectifiedFlow(shift=3.0),
    tasks=Tasks(generation=0.6, first_frame=0.4),
    sampler=Sampler(method="heun", steps=16, guidance_scale=3.0),
    optimizer=AdamW(lr=2e-4, warmup=1_000),
    topology="v5e:2x4",
    evals={
      "loss": ValLoss(),
      "seen": Prompts(SAYS, split="train", **judged),
      "text": Prompts(SAYS, **judged),
      "together": Prompts(SAYS, **judged, **together),
    },
  )
  config.model.encoder = T5Config(vocabulary=512, width=256, depth=4, heads=4, mlp=512)
  match variant:
    case "full":
      pass
    case "demo" | "tiny":
      config.data = Clips(name="emoji", frames=8, size=(32, 32), batch_size=16)
      small = dict(pattern=(("space", "time", "text"),), dtype="float32", text=64, pooled=True)
      config.model = TransformerConfig.sized("XS", patch=(1, 8, 8), **small)
      config.model.encoder = T5Config(512, width=64, depth=1, heads=2, head_size=32, mlp=128, dtype="float32")
      config.diffusion = RectifiedFlow(shift=3.0, prediction="x0")
      config.sampler = Sampler(method="heun", steps=16, guidance_scale=2.0)
      config.ema = 0.99
      config.steps, config.log_every, config.save_every = 3_000, 20, 500
      config.optimizer = Muon(lr=2e-3, warmup=50, decay=config.steps, scale=0.5)
      if variant == "tiny":
        config.model.width, config.model.heads = 32, 1
        config.data.batch_size = 8
        config.steps, config.log_every, config.save_every = 20, 5, 10
        config.optimizer.decay = config.steps
        for each in config.evals.values():
          each.count = 8
          if isinstance(each, Prompts):
            each.judged_by = 96
    case _:
      raise ValueError(f"unknown variant {variant!r}: choose full, demo or tiny")
  return config
