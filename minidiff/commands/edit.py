"""Change a picture by words: invert it and draw it again, redraw it, or repaint a part of it.

  python -m minidiff edit puppy.png --from "a photograph of a puppy" --to "a photograph of a kitten" --model FOLDER
  python -m minidiff edit puppy.png --to "a puppy, oil on canvas" --strength 0.6 --model FOLDER
  python -m minidiff edit puppy.png --to "a cat on a bench" --mask mask.png --model FOLDER
  python -m minidiff edit --scene 7 --to "a small blue star on a black background" --start 5

With --from: the noise from which the picture would have come, and from there, or from --start steps on, down again after the
other words (DDIM inversion); --by difference does without, and moves by what the two sentences say differently. With
--strength: noised that far and denoised. With --mask: new where the mask is white. A --scene is a drawing in place of a file,
such as our own models learn from, and needs no --from. A new colour or shape bears 10 steps of 50 left out; a new background
does not, and comes out grey between the old and the new.
"""

import torch

from .. import plot
from ..data import load_picture, save_picture
from ..evaluation.editing import edits, originals
from ..pipelines import StableDiffusion
from .common import device_argument, pick_device

NAME, HELP = "edit", "change a picture by words"


def arguments(parser):
    parser.add_argument("image", nargs="?", default=None, metavar="FILE", help="the picture; or --scene")
    parser.add_argument("--scene", type=int, default=None, metavar="K", help="drawing number K in place of a file")
    parser.add_argument("--to", required=True, metavar="PROMPT", help="what it is to show")
    parser.add_argument("--from", dest="source", default=None, metavar="PROMPT", help="what it shows: invert it; scenes know")
    parser.add_argument("--strength", type=float, default=None, help="redraw it, 0: as it is, to 1: hardly any of it")
    parser.add_argument("--mask", default=None, metavar="FILE", help="repaint where this picture is white")
    parser.add_argument("--negative", default="", help="what to steer away from")
    parser.add_argument("--model", default="shapes", help="a folder of train --stage, or of any Stable Diffusion")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--by", choices=("inversion", "difference"), default=None, help="with --from: how; inversion")
    parser.add_argument("--start", type=int, default=None,
                        help="steps to leave out, 10 if left out, 5 by difference; the more, the less changes")
    parser.add_argument("--refine", type=int, default=None, help="inversion: fixed-point rounds a step, 0 if left out")
    parser.add_argument("--borrow", type=float, default=None, metavar="SHARE",
                        help="share of the steps that look where the old picture looks, 0 if left out. Inversion: 0.3 keeps "
                        "things in their places, best with --guidance 1.5, --start 0 and --from's words as --negative, too. "
                        "By difference: 1 for a new colour, 0 for a shape, 0.2 for a background")
    parser.add_argument("--guidance", type=float, default=None,
                        help="1: as trained; higher: closer to the words; the model's own if left out, 2 by difference")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="edited.png", help="the file to write")
    parser.add_argument("--compare", default=None, metavar="FILE.png", help="also write before and after, side by side")
    device_argument(parser)


def run(args):
    check(args)
    pipe = StableDiffusion.from_pretrained(args.model, device=pick_device(args.device))
    image, source = read(args, pipe)
    told = {"steps": args.steps, "guidance_scale": args.guidance, "negative_prompt": args.negative}
    drawn = {"generator": torch.Generator().manual_seed(args.seed), **told}
    if args.mask:
        mask = (load_picture(args.mask, pipe.size, pipe.stride, channels=1) + 1) / 2
        result = pipe.inpaint(args.to, image, mask, 1.0 if args.strength is None else args.strength, **drawn)
    elif args.strength is not None:
        result = pipe.img2img(args.to, image, args.strength, **drawn)
    elif args.by == "difference":
        result = pipe.edit_by_difference(image, source, args.to, args.steps, 5 if args.start is None else args.start,
                                         2.0 if args.guidance is None else args.guidance, args.borrow or 0.0,
                                         drawn["generator"])  # fmt: skip
    else:
        start = min(10, args.steps - 1) if args.start is None else args.start
        result = pipe.edit(image, source, args.to, start=start, refine=args.refine or 0,
                           borrow=args.borrow or 0.0, **told)
    print(save_picture(args.out, result))
    if args.compare:
        plot.show_images(torch.cat([image, result.cpu()]).clamp(-1, 1), titles=[source or "before", args.to], columns=2,
                         file=args.compare)  # fmt: skip
        print(args.compare)


def check(args) -> None:
    """ValueError for options that do not go together, before anything is loaded."""
    if (args.image is None) == (args.scene is None):
        raise ValueError("give a picture to edit, or --scene K for a drawing: one of them")
    inverts = args.mask is None and args.strength is None
    if inverts and args.image and args.source is None:
        raise ValueError("say what the picture shows with --from, how far to redraw it with --strength, or where with --mask")
    for name in () if inverts else ("source", "by", "start", "refine", "borrow"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('source', 'from')} is for inversion, and --mask and --strength do without")
    if args.by == "difference" and (args.refine is not None or args.negative):
        raise ValueError("--by difference has no inversion to --refine, and leads away from --from's words: no --negative")


def read(args, pipe) -> tuple[torch.Tensor, str | None]:
    """The picture, (1, 3, H, W), and what it shows, if that is known."""
    if args.image:
        return load_picture(args.image, pipe.size, pipe.stride), args.source
    if args.scene < 0:
        raise ValueError(f"--scene {args.scene}: scenes are counted from 0")
    scene = edits("colour", args.scene + 1, args.seed)[-1:]
    return originals(scene, pipe.size), args.source or scene[0].source
