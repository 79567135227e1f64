"""Whatever draws or picks a cover for a person, behind one signature, one idea a file.

draw(items, users, seeds) -> images, evaluations of the denoiser, seconds
"""

from icg.evaluation.contenders.base import Case, Contender, Drawn, Generator, Reader
from icg.evaluation.contenders.best_of import BestOfShared
from icg.evaluation.contenders.conditioned import Conditioned, mismatched, neutral, random_embedding, segment, user
from icg.evaluation.contenders.filtered import FilteredNeutral
from icg.evaluation.contenders.ideal import ideal
from icg.evaluation.contenders.oracle import Oracle, Planted
from icg.evaluation.contenders.prompted import InferredPrompt, PromptOracle
from icg.evaluation.contenders.reference import ReferenceImage

__all__ = [
    "BestOfShared",
    "Case",
    "Conditioned",
    "Contender",
    "Drawn",
    "FilteredNeutral",
    "Generator",
    "InferredPrompt",
    "Oracle",
    "Planted",
    "PromptOracle",
    "Reader",
    "ReferenceImage",
    "ideal",
    "mismatched",
    "neutral",
    "random_embedding",
    "segment",
    "user",
]
