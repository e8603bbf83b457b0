"""All that knows a model family: loading, prompts, pictures, and where W_out and W_U are."""

from mmedit.models import mplug_owl2 as mplug_owl2
