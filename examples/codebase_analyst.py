"""A code-base analyst: it reads the real files of a folder and reports on them.

    python examples/codebase_analyst.py FOLDER

Its tools list, read and search files, and refuse every path outside of the folder. Without a key a
script decides what to read, from what the tools really answered. Kill it in the middle and run it
again: files that were read are not read again. Ask about a folder anew: add a word to its id below.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from _analyst_script import analyst_script
from _model import model
from pydantic import BaseModel

import agentflow
from agentflow import ActivityContext, Agent, NonRetryableError, RunParkedError, tool, workflow
from agentflow.providers.scripted import script
