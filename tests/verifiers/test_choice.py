"""The option that a response chooses, in texts as language models write them."""

from __future__ import annotations

import pytest

from cruxtune.verifiers.choice import extract_choice
from cruxtune.verifiers.options import options

DRUGS = ["Aspirin", "Heparin", "Low-dose heparin", "None of the above"]
CLOTTING = ["Aspirin", "Warfarin", "Low-dose warfarin", "Heparin"]
WORDS = ["yes", "no", "maybe"]
SAID: list[tuple[list[str], str, str | None]] = [
    (DRUGS, "A) Aspirin\n\nThe correct answer is:\nB) Heparin", "B"),
    (DRUGS, "The correct answer is:\n(A) Aspirin\n(B) Heparin", None),
    (DRUGS, "A: (C)", "C"),
    (WORDS, "(A) yes\n(B) no", None),
    (DRUGS, "A. Aspirin\nB. Heparin\nC. Low-dose heparin\nD. None of the above", None),
    (DRUGS, "\\boxed{B}\n\nA. Aspirin\nB. Heparin\nC. Low-dose heparin\nD. None of the above", "B"),
    (DRUGS, "Answer: B\n\nIncorrect options:\nA. Aspirin\nC. Low-dose heparin", "B"),
    (WORDS, "Answer: (A)\n\n(A) yes\n(B) no\n(C) maybe", "A"),
    (WORDS, "(A) yes (B) no (C) maybe", None),
    (
        DRUGS,
        "\\boxed{B}\n\nExplanation for each answer choice:\nA) Aspirin - an antiplatelet.\nB) Heparin - right.",
        "B",
    ),
    (DRUGS, "Let's consider each answer choice:\n\nA) Aspirin - weak\nB) Heparin - right.\n\nSo B is the best.", "B"),
    (DRUGS, "**Answer:**\n\nA is incorrect because it is weak.\nB is correct because it acts.", "B"),
    (DRUGS, "Answer: A. Aspirin is wrong. B. Heparin is correct.", "B"),
    (DRUGS, "The correct answer is therefore not aspirin.", None),
    (DRUGS, "The answer is definitely not aspirin.", None),
    (DRUGS, "The best option is to avoid aspirin.", None),
    (
        DRUGS,
        "#### A) Aspirin\nwrong.\n#### B) Heparin\nright.\n#### D) None of the above\nwrong.\n\nSo (B) is correct.",
        "B",
    ),
    (DRUGS, "The answer is not (A).", None),
    (DRUGS, "(A) is incorrect.", None),
    (DRUGS, "It isn't (A)", None),
    (DRUGS, "This rules out (A).", None),
    (DRUGS, "(B) is the best. (A) is wrong.", "B"),
    (DRUGS, "(B) is correct. (A), (C), and (D) are incorrect.", "B"),
    (DRUGS, "I would not choose A.", None),
    (DRUGS, "I don't think it is A.", None),
    (
        CLOTTING,
        "(A) Aspirin: right.\n(B) Warfarin: wrong.\n(D) Heparin: wrong.\n\nAspirin is the answer.",
        "A",
    ),
    (WORDS, "There was no difference.", None),
    (WORDS, "Yes.\n\nThis study showed no effect of age.", "A"),
    (WORDS, "Yes, mitochondria play a role.\nThere was no other effect.", "A"),
    (WORDS, "A\n\nThere was no difference.", "A"),
    (WORDS, "The answer is mostly yes, with no side effects.", "A"),
    (DRUGS, "Her temperature was 38.5°C, so she needs heparin.", "B"),
    (DRUGS, "This patient with C. difficile infection needs heparin", "B"),
    (CLOTTING, "Heparin is needed. B cells are fine.", "D"),
    (CLOTTING, "This is B cell lymphoma", None),
    (CLOTTING, "due to C peptide", None),
    (DRUGS, "The answer is **A** or **B**.", None),
    (DRUGS, "**A** and **B**", None),
    (DRUGS, "The answer is A, or B.", None),
    (DRUGS, "A (or B)", None),
    (DRUGS, "\\boxed{A; B}", None),
    (DRUGS, "\\boxed{A - B}", None),
    (DRUGS, "\\boxed{A \\& B}", None),
    (DRUGS, "The answer is (A) Aspirin or (B) Heparin", None),
    (DRUGS, "\\boxed{A. Aspirin, B. Heparin}", None),
    (DRUGS, "The answer is aspirin or heparin.", None),
    (DRUGS, "\\boxed{\\textbf{(A)}\\ \\text{Heparin}}", None),
    (DRUGS, "\\boxed{A:\\ \\text{Heparin}}", None),
    (DRUGS, "\\boxed{A.~\\text{Heparin}}", None),
    (DRUGS, "\\boxed{\\text{A.}\\quad\\text{Heparin}}", None),
    (DRUGS, "The answer is Heparin (A).", None),
    (DRUGS, "\\boxed{\\text{Heparin (A)}}", None),
    (DRUGS, "The answer is heparin, option A.", None),
    (DRUGS, "Answer: a) heparin", None),
    (DRUGS, "Answer: b) heparin", "B"),
    (DRUGS, "The answer is c. heparin", None),
    (DRUGS, "The answer is A! Heparin is wrong.", "A"),
    (DRUGS, "Option A is correct.", "A"),
    (DRUGS, "Therefore, A is the best choice.", "A"),
    (DRUGS, "A is correct because it acts fast.", "A"),
    (DRUGS, "I would go with A here", "A"),
    (DRUGS, "Choice A fits best.", "A"),
    (DRUGS, "Option D is wrong.\nOption A is correct.", "A"),
    (DRUGS, "The answer is B. Aspirin is an antiplatelet and would not help.", "B"),
    (DRUGS, "The answer is **B**. Aspirin is wrong.", "B"),
    (DRUGS, "Answer: B. Aspirin, an antiplatelet, is ineffective.", "B"),
    (DRUGS, "The answer is B (aspirin is wrong).", "B"),
    (DRUGS, "(B) because (A) and (C) are wrong.", "B"),
    (DRUGS, "B is correct. A, C, and D are incorrect.", "B"),
    (DRUGS, "The answer is most likely B.", "B"),
    (DRUGS, "The answer is probably B.", "B"),
    (DRUGS, "Most likely B.", "B"),
    (DRUGS, "b", "B"),
    (DRUGS, "b.", "B"),
    (DRUGS, "option b.", "B"),
    (DRUGS, "The answer is option b.", "B"),
    (DRUGS, "The answer is 'B'.", "B"),
    (DRUGS, "‘B’", "B"),
    (DRUGS, "__B__", "B"),
    (DRUGS, "\\boxed{\\rm B}", "B"),
    (["-1", "1", "0", "2"], "The answer is -1.", "A"),
    (["-1", "1", "0", "2"], "The answer is −1.", "A"),
    (["-1", "1", "0", "2"], "\\boxed{1}", "B"),
    (["", "heparin"], ".", None),
    (["", "heparin"], "I think -", None),
    (DRUGS, "B) Heparin", "B"),
    (DRUGS, "A) Aspirin - weak\nB) Heparin - strong\n\nB) Heparin", "B"),
    (DRUGS, "The answer is B and not A", "B"),
    (DRUGS, "Both A and C are wrong; the answer is B", "B"),
    (DRUGS, "<answer>B</answer>", "B"),
    (DRUGS, "The correct answer is **B: Heparin**", "B"),
    (DRUGS, "\\boxed{\\text{B. Heparin}}", "B"),
    (DRUGS, "$\\boxed{B}$", "B"),
    (DRUGS, "Final answer: B.", "B"),
    (DRUGS, "Option B is correct.", "B"),
    (DRUGS, "The correct answer is option B.", "B"),
    (DRUGS, "A) is wrong. B) is right. Answer: B", "B"),
    (WORDS, "A (yes)", "A"),
    (WORDS, "A. Yes", "A"),
    (WORDS, "(A) Yes", "A"),
    (WORDS, "A: Yes, the difference was seen", "A"),
    (WORDS, "No; it does not", "B"),
    (WORDS, "The answer is yes, because", "A"),
    (WORDS, "Maybe", "C"),
    (WORDS, "A. No, there was no difference.", None),
    (DRUGS, "I think it is C.", "C"),
]
"""What models write: lists of options, options that are dismissed, dressings, doubts, and the option that is meant."""


@pytest.mark.parametrize(("choices", "text", "answer"), SAID)
def test_what_models_write(choices: list[str], text: str, answer: str | None) -> None:
    """An option is found where a careful reader would find it, and none where none or several are chosen."""
    assert extract_choice(text, options("A", choices)).answer == answer


@pytest.mark.parametrize("piece", ["A or B ", "(", "Heparin ", "A) Aspirin\n", "A, ", "not ", "A is ", "\n"])
def test_long_texts_take_time_in_proportion(piece: str) -> None:
    """Nothing that a model repeats to the limit makes a verdict take minutes."""
    extract_choice(piece * (100_000 // len(piece)), options("A", DRUGS))
