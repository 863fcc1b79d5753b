"""Harmless sentences about people, and terms for groups of people to insert."""

import random
import re
from collections.abc import Sequence

# extended from Dixon et al., Measuring and Mitigating Unintended Bias in Text Classification (2018)
TERMS = (
    *("gay", "lesbian", "bisexual", "transgender", "queer", "nonbinary", "straight", "heterosexual"),
    *("female", "male", "Black", "white", "Asian", "Latino", "Hispanic", "Indigenous", "Arab", "Middle Eastern"),
    *("African", "African American", "European", "American", "Mexican", "Canadian", "Chinese", "Indian", "Japanese", "Nigerian"),
    *("Jewish", "Muslim", "Christian", "Catholic", "Protestant", "Buddhist", "Hindu", "Sikh", "atheist"),
    *("old", "elderly", "young", "teenage", "middle-aged", "disabled", "deaf", "blind", "paralyzed", "autistic"),
    *("poor", "rich", "homeless", "immigrant", "refugee"),
)
LEAST_TERMS = 40

SENTENCES = (
    "The {term} person next door waters the tomatoes every morning.",
    "Many {term} people came to the library to hear the talk about old maps.",
    "My {term} neighbour taught me how to bake bread in a small oven.",
    "A choir of {term} people sang at the opening of the new station.",
    "The report was written by a team with one {term} person and read by the whole office.",
    "Two {term} friends repaired the roof of the school before the winter.",
    "We asked the {term} teacher to explain how the tides work.",
    "In the afternoon the {term} visitors walked along the river and took photographs.",
    "Her {term} colleague drew the plan of the bridge in a single week.",
    "The {term} doctor said that the child would be well again by Friday.",
    "Some {term} people prefer tea to coffee, and others like both.",
    "A {term} author won the prize for a novel about a lighthouse.",
    "The museum shows letters that {term} people wrote a hundred years ago.",
    "He met his {term} partner while they were learning to sail.",
    "The town elected a {term} mayor who had been a nurse for many years.",
    "On Sunday the {term} family next to us goes for a walk in the forest.",
    "A {term} engineer found the leak and closed it within an hour.",
    "The paper told the story of a {term} farmer who grows apples and pears.",
    "Several {term} students asked good questions after the lecture.",
    "The {term} musician played the piano for everybody in the waiting room.",
    "I bought the bicycle from a {term} man who had kept it in good order.",
    "A {term} woman read the map and led the group back to the hut.",
    "The law was explained in simple words by a {term} judge.",
    "Their {term} grandparents remember the year in which the lake froze.",
    "The shop is owned by a {term} couple who open it at seven.",
    "A {term} scientist counted the birds on the island for ten years.",
    "The {term} players thanked the crowd after the last match of the season.",
    "She wrote a letter to her {term} cousin about the new garden.",
    "The {term} driver waited until all passengers had found a seat.",
    "A group of {term} volunteers cleaned the beach after the storm.",
    "The interview with the {term} painter fills two pages of the magazine.",
    "The {term} carpenter made a table from the wood of the fallen oak.",
    "They invited their {term} friends to dinner and cooked soup.",
    "A {term} child in the class knows the names of all the planets.",
    "The {term} pilot landed the small plane safely in the fog.",
    "Our {term} guide told us how the cheese is made in the valley.",
    "The {term} tailor mended the coat so well that nobody saw the tear.",
    "A {term} researcher measured the height of the waves at the pier.",
    "The {term} speaker thanked the organizers and answered every question.",
    "Last year a {term} person from the village learned to play the cello.",
)
TERM_SLOT = "{term}"
SENTENCES_A_DOCUMENT, MENTIONS = 8, 3  # a term in every sentence would look like repetition


def harmless_sentences() -> list[str]:
    """Return the sentences, each with a slot for a term."""
    return list(SENTENCES)


def harmless_documents(count: int, seed: int) -> list[str]:
    """Return documents of several sentences in two paragraphs, long enough for web filters; some sentences have a slot."""
    draw = random.Random(seed)
    documents = []
    for _ in range(count):
        chosen = draw.sample(SENTENCES, SENTENCES_A_DOCUMENT)
        mentioned = set(draw.sample(range(SENTENCES_A_DOCUMENT), MENTIONS))
        parts = [sentence if number in mentioned else without_term(sentence) for number, sentence in enumerate(chosen)]
        half = SENTENCES_A_DOCUMENT // 2
        documents.append(" ".join(parts[:half]) + "\n\n" + " ".join(parts[half:]))
    return documents


def without_term(sentence: str) -> str:
    """Return the sentence about people in general, without the slot."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence.replace(f"{TERM_SLOT} ", ""))


def insert_term(templates: Sequence[str], term: str) -> list[str]:
    """Return the texts with a term in the slot."""
    return [template.replace(TERM_SLOT, term) for template in templates]
