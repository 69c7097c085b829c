"""Can a handler be imported, and what does it offer? `torch-model-archiver verify` runs this in a
process of its own, with a worker's paths.

The handler's module is imported as a worker imports it, and nothing in it is called.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import traceback
from typing import Any

from ts.model_loader import import_handler
from ts.utils.util import list_classes_from_module


def check_handler(handler: str, model_dir: str) -> dict[str, Any]:
    """entry_point: what a worker would call, "" if there is none.

    error, traceback: why the import failed; missing_module: the module it missed, if that is why.
    warning: what may fail when the model is loaded.
    """
    found: dict[str, Any] = {
        "entry_point": "",
        "error": "",
        "traceback": [],
        "missing_module": "",
        "warning": "",
    }
    try:
        module, function_name = import_handler(handler, model_dir)
    except BaseException as error:  # a handler may call sys.exit
        _explain(error, found)
        return found
    if hasattr(module, function_name):
        found["entry_point"] = f"function {function_name} of {module.__name__}"
        return found
    classes = list_classes_from_module(module)
    if len(classes) != 1:
        names = ", ".join(each.__name__ for each in classes) or "none"
        found["error"] = (
            f"{module.__name__} has no function {function_name} and not exactly one class ({names})"
        )
        return found
    found["entry_point"] = f"class {classes[0].__name__} of {module.__name__}"
    missing = [name for name in ("initialize", "handle") if not hasattr(classes[0], name)]
    if missing:  # an object may still get them in its constructor
        found["warning"] = f"class {classes[0].__name__} has no {' and no '.join(missing)}"
    return found


def _explain(error: BaseException, found: dict[str, Any]) -> None:
    found["error"] = f"{type(error).__name__}: {error}"
    # Without the frames that led into the handler's module, and those of the import system.
    ours = (__file__, import_handler.__code__.co_filename, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and frame.filename not in ours
    ]
    lines = "".join(traceback.format_list(frames)).splitlines()
    if isinstance(error, SyntaxError):
        lines += "".join(traceback.format_exception_only(error)).splitlines()
    found["traceback"] = lines
    if isinstance(error, ModuleNotFoundError):
        found["missing_module"] = error.name or ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="handler_check")
    parser.add_argument("--result-fd", type=int, required=True)
    parser.add_argument("handler")
    parser.add_argument("model_dir")
    options = parser.parse_args()
    found = check_handler(options.handler, options.model_dir)
    with open(options.result_fd, "w", encoding="utf-8") as file:
        json.dump(found, file)
    os._exit(0)  # threads that the handler's imports have left are nobody's to wait for


if __name__ == "__main__":
    main()
