"""The exercises: what there is, what you have passed, and the proof that their checks can be trusted.

  python -m minidiff course            every task, and which you have passed
  python -m minidiff course verify     solutions must pass, stubs and known mistakes must fail, each with its own sentence
"""

from ..course import progress, verify

NAME, HELP = "course", "list the exercises, or prove their checks"


def arguments(parser):
    parser.add_argument("what", nargs="?", choices=("progress", "verify"), default="progress")
    parser.add_argument("--only", default="", metavar="ID", help="tasks whose id begins so, such as 06 or 06.2")


def run(args):
    if args.what == "progress":
        progress()
        return
    verdicts = verify(lambda id: id.startswith(args.only))
    if not verdicts:
        raise ValueError(f'no task begins with "{args.only}"')
    for v in verdicts:
        print(f"{v.id}  {v.caught} of {v.mistakes} mistakes caught" + "".join(f"\n      {told}" for told in v.failures))
    known = sum(v.mistakes for v in verdicts)
    solutions, stubs = (sum(getattr(v, name) for v in verdicts) / len(verdicts) for name in ("solution", "stub"))
    caught = sum(v.caught for v in verdicts) / known
    print(f"{len(verdicts)} tasks: solutions {solutions:.0%}, stubs {stubs:.0%}, mutants {caught:.0%} of {known}")
    if any(v.failures for v in verdicts):
        raise ValueError("not every check does what it should: see the lines above")
