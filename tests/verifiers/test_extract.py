r"""What is taken for a text's answer, and in which form."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cruxtune.verifiers import FALLBACK_REASONS
from cruxtune.verifiers.choice import extract_choice
from cruxtune.verifiers.extract import (
    Found,
    clean,
    explicit_forms,
    extract_exact,
    extract_gym,
    extract_math,
    last_number,
    lone_number,
    normalised,
)
from cruxtune.verifiers.options import options

MATH = [
    ("Nine boxes of 6 pens are 54 pens.\n#### 54", "54", "hash"),
    ("Nine boxes of 6 pens are 54 pens. #### 54", "54", "hash"),
    ("#### $1,250.50", "1,250.50", "hash"),
    ("#### **11**", "11", "hash"),
    ("#### 40 marbles in all", "40", "hash"),
    ("#### 1\n#### 2\nThat was it, 7 lines later.", "2", "hash"),
    ("#### Step 1: buy\n3 + 4 = 7\n#### Step 2: sell\n7 - 2 = 5", "5", "last-number"),
    ("#### Final Answer\nSo she has 12 left.", "12", "last-number"),
    ("####\nSo she has 12 left.", "12", "last-number"),
    (r"Hence $x=\boxed{\dfrac{3}{4}}$.", r"\dfrac{3}{4}", "boxed"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "boxed"),
    (r"\fbox{17}", "17", "boxed"),
    (r"\[ \boxed{18 \text{ dollars}} \]", "18", "boxed"),
    (r"\boxed{2{,}125}", "2,125", "boxed"),
    (r"First \boxed{3}, but on reflection \boxed{4}.", "4", "boxed"),
    (r"It is \boxed{5} or, cut off, \boxed{1", "5", "boxed"),
    (r"cut off: \boxed{12", "12", "last-number"),
    ("The answer is 17.", "17", "phrase"),
    ("The final answer is: $17$", "17", "phrase"),
    ("the answer is **17**!", "17", "phrase"),
    ("**Answer:** 17 km", "17", "phrase"),
    ("**Final Answer**: **$17**", "17", "phrase"),
    ("The answer to the second question is therefore 17 because 34 / 2 = 17.", "17", "phrase"),
    ("The answer is:\n\n\\[\n17\n\\]", "17", "phrase"),
    ("The answer is that 17 of them are left over.", "17", "phrase"),
    ("The answer is x = 17.", "x = 17", "phrase"),
    ("The answer is 2 pi.", "2 pi", "phrase"),
    ("The answer is 5 hours and 20 minutes.", "5 hours and 20 minutes", "phrase"),
    ("The answer is 3.5. Then we check it: 3.5 * 2 = 7.", "3.5", "phrase"),
    ("The answer is 16. Wait, that forgets one.\nThe answer is 17.", "17", "phrase"),
    (r"The answer is 16. No, \boxed{17}", "17", "boxed"),
    (r"\boxed{16}, hmm. #### 17", "17", "hash"),
    ("#### 16\nSorry, the answer is 17.", "17", "phrase"),
    ("The answer is not 12. He has 17.", "17", "last-number"),
    ("Answer: To find the price, we first add up what each of them paid for tickets: 3 + 4 = 7", "7", "last-number"),
    ("<think>#### 3, or the answer is 4</think>\nIt is 5.", "5", "last-number"),
    ("<think>a</think> b </think> #### 6", "6", "hash"),
    ("<think>a</think> #### 6 <think> or #### 7", "6", "hash"),
    ("<think>the answer is 6, but let me", None, "no-answer"),
    ("<think>x</think>\n<answer> 42 </answer>", "42", "tag"),
    ("<answer>$\\boxed{7}$</answer>", "7", "boxed"),
    ("<answer>no</answer> <answer>x^2</answer>", "x^2", "tag"),
    ("18", "18", "bare"),
    (r"$\frac{3\pi}{10}$", r"\frac{3\pi}{10}", "bare"),
    ("(-1, 2]", "(-1, 2]", "bare"),
    ("12:10", "12:10", "bare"),
    (r"\[x = 3\]", "x = 3", "bare"),
    (r"x=1 \text{ or } x=2", r"x=1 \text{ or } x=2", "bare"),
    ("It is 5", "5", "last-number"),
    (r"Therefore $x=\frac{\pi}{2}$.", r"\frac{\pi}{2}", "last-maths"),
    (r"Hence $x = 2 \sqrt{3}$, as said.", r"2 \sqrt{3}", "last-maths"),
    (r"Hence $k < 3$ holds.", "k < 3", "last-maths"),
    (r"Hence \[A = \mathbf{1 4}.\]", r"\mathbf{1 4}", "last-maths"),
    (r"So $x = \sqrt{2}$, for 3 people.", "3", "last-number"),
    ("She pays $3 + $4 = $7 for it.", "7", "last-number"),
    ("She pays $30 and gets $12.", "12", "last-number"),
    (
        "#### \\begin{pmatrix}\n1 \\\\\n2\n\\end{pmatrix}\nDone.",
        "\\begin{pmatrix}\n1 \\\\\n2\n\\end{pmatrix}",
        "hash",
    ),
    ("The answer is $5! = 120$.", "5! = 120", "phrase"),
    ("The answer is \\text{large but finite}.", "\\text{large but finite}", "phrase"),
    ("Answer = 12", "12", "phrase"),
    ("The answer is 12. Putting it in, we see that our answer is correct.", "12", "phrase"),
    ("So the temperature is now -3 degrees.", "-3", "last-number"),
    ("So he owes -$1,200.50.", "-1,200.50", "last-number"),
    ("16 - 9 is 7, and 10-5 is half of 10, so 5", "5", "last-number"),
    ("a share of 3/8", "3/8", "last-number"),
    ("a discount of 15 %", "15%", "last-number"),
    (r"that is $\frac{3}{4}$ of it", r"\frac{3}{4}", "last-number"),
    ("That is 1,234,567 of them.", "1,234,567", "last-number"),
    ("a list: 1,2345", "2345", "last-number"),
    ("about .5 of it", ".5", "last-number"),
    ("I do not know.", None, "no-answer"),
    ("", None, "no-answer"),
    ("The answer is", None, "no-answer"),
    (r"\boxed{}", None, "no-answer"),
]


@pytest.mark.parametrize(("text", "answer", "form"), MATH)
def test_math(text: str, answer: str | None, form: str) -> None:
    """The last explicit form decides, else the last number."""
    assert extract_math(text) == Found(answer, form)


@pytest.mark.parametrize(("text", "answer", "form"), MATH)
def test_math_strict(text: str, answer: str | None, form: str) -> None:
    """Strict extraction agrees on explicit forms and finds nothing where the guess would decide."""
    expected = Found(None, "no-answer") if form in FALLBACK_REASONS else Found(answer, form)
    assert extract_math(text, strict=True) == expected


DRUGS = ["Aspirin", "Heparin", "Low-dose heparin", "None of the above"]
CHOICE = [
    ("The answer is (B).", "B", "phrase"),
    ("The answer is B. Heparin inhibits thrombin.", "B", "phrase"),
    ("The answer is B", "B", "phrase"),
    ("The correct option is (c).", "C", "phrase"),
    ("**Answer: B**", "B", "line-or-phrase"),
    ("The best answer choice is **B) Heparin**, as it acts fast.", "B", "phrase"),
    ("The answer is B because it acts fast.", "B", "phrase"),
    ("The answer is heparin.", "B", "phrase"),
    ("The answer is low-dose heparin, given for a week.", "C", "phrase"),
    ("The answer is clearly heparin here.", "B", "phrase"),
    ("The answer is A patient-specific matter. I would say \\boxed{D}", "D", "boxed"),
    (r"\boxed{B}", "B", "boxed"),
    (r"\boxed{\text{(B) Heparin}}", "B", "boxed"),
    (r"\boxed{b}", "B", "boxed"),
    ("#### B", "B", "hash"),
    ("#### Heparin", "B", "hash"),
    ("The answer is A.\n#### B", "B", "hash"),
    ("It acts fast.\nB", "B", "line"),
    ("It acts fast.\n(B)", "B", "line"),
    ("It acts fast.\n**B.**\n", "B", "line"),
    ("It acts fast.\nB) Heparin", "B", "line"),
    ("It acts fast.\n\nHeparin.", "B", "line"),
    ("Option B", "B", "line"),
    ("I would choose B here", "B", "last-letter"),
    ("A is wrong, so (C) it must be after all", "C", "last-letter"),
    ("This patient needs heparin, not aspirin or low-dose heparin", "C", "last-option"),
    ("A patient with this history needs care", None, "no-answer"),
    ("\\boxed{E}", None, "no-answer"),
    ("The answer is unclear", None, "no-answer"),
    ("It acts fast.\nA: Heparin", None, "no-answer"),
    ("The answer is (A) heparin.", None, "no-answer"),
    ("B, so #### A. None of the above", None, "no-answer"),
    ("The answer is a heparin.", "B", "phrase"),
    ("A: heparin or aspirin\nB: heparin", "B", "line"),
    ("<think>The answer is A</think>The answer is D", "D", "phrase"),
    # What a line begins with is a comment where there is an explicit form.
    ("Heparin, a fast drug, is wrong here, so the answer is \\boxed{D}.", "D", "boxed"),
    ("The answer is \\boxed{D}.\nHeparin, then, is wrong.", "D", "boxed"),
    ("Heparin, since it acts fast", "B", "line"),
    # Two options at once.
    ("A. Heparin, as it acts fast.", None, "no-answer"),
    ("The answer is (A) heparin, because it acts fast.", None, "no-answer"),
    ("The answer is A — heparin", None, "no-answer"),
    ("The answer is A (heparin).", None, "no-answer"),
    ("I choose A: heparin", None, "no-answer"),
    ("A: heparin\nThat is all there is to say", None, "no-answer"),
    ("\\boxed{A = heparin}", None, "no-answer"),
    ("\\boxed{A or B}", None, "no-answer"),
    ("\\boxed{A, B}", None, "no-answer"),
    ("It must be both A and B", None, "no-answer"),
    ("It is A or B", None, "no-answer"),
    ("A and B are wrong, so C", "C", "last-letter"),
    ("A: heparin, B: aspirin, so the answer is (D)", "D", "phrase"),
    # A sentence of its own behind the letter.
    ("The answer is A. Heparin inhibits thrombin, and that is not asked.", "A", "phrase"),
    # Letters that point at nothing.
    ("It needs vitamin C and heparin", "B", "last-option"),
    ("Which drug\nC it is, I think", "C", "last-letter"),
    ("It is a B-cell disease", None, "no-answer"),
    ("Aspirin.", "A", "line"),
]


@pytest.mark.parametrize(("text", "answer", "form"), CHOICE)
def test_choice(text: str, answer: str | None, form: str) -> None:
    """An option is chosen by letter or by text; the last form that names one decides."""
    found = extract_choice(text, options("A", DRUGS))
    assert found.answer == answer
    assert found.form in form.split("-or-")


@pytest.mark.parametrize(
    ("text", "answer", "form"),
    [
        ("It is a fungus.\n\nAmphotericin B", "C", "line"),
        ("It is most like diffuse B-cell lymphoma, I think", "B", "last-option"),
        ("The answer is C. difficile.", "A", "phrase"),
        ("The answer is C. difficile toxin.", "D", "phrase"),
        ("C. difficile", "A", "line"),
        ("C. difficile toxin, which is found in stool", "D", "line"),
        ("I choose C", "C", "last-letter"),
        ("I choose C. difficile", "A", "last-option"),
    ],
)
def test_options_with_letters_of_their_own(text: str, answer: str, form: str) -> None:
    """A letter within an option's text is not that of another option, and of two options the longer one is meant."""
    known = options("A", ["C. difficile", "Diffuse B-cell lymphoma", "Amphotericin B", "C. difficile toxin"])
    assert extract_choice(text, known) == Found(answer, form)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1/3}", None),
        (r"\boxed{0.5}", None),
        (r"\boxed{\frac{1}{4}}", "B"),
        (r"\boxed{1}", "D"),
        ("The answer is 1, since all of them are.", "D"),
        ("It is 1-2 in all", None),
        (r"\boxed{25 \%}", "C"),
        ("The answer is 25 %.", "C"),
        ("The answer is 125 %.", None),
    ],
)
def test_options_that_are_numbers(text: str, answer: str | None) -> None:
    """A number is an option as a whole, however fractions and per cent are written."""
    assert extract_choice(text, options("B", ["0", "1/4", "25%", "1"])).answer == answer


@pytest.mark.parametrize(
    ("text", "answer", "form"),
    [
        ("The answer is yes.", "yes", "phrase"),
        ("The answer is that no difference was found.", "no", "phrase"),
        ("Yes, it lowers mortality.", "yes", "line"),
        ("It is open.\n\nMaybe", "maybe", "line"),
        (r"\boxed{\text{No}}", "no", "boxed"),
        ("Nothing is known.", None, "no-answer"),
        ("It seems so, with no doubt.", None, "no-answer"),
    ],
)
def test_choice_words(text: str, answer: str | None, form: str) -> None:
    """Where the gold is a word, the words yes, no and maybe are the options, never guessed from prose."""
    assert extract_choice(text, options("yes", None)) == Found(answer, form)


def test_choice_strict() -> None:
    """Strict extraction does not take the last letter that stands alone."""
    assert extract_choice("I would choose B here", options("A", DRUGS), strict=True) == Found(None, "no-answer")


def test_choice_gold_by_text() -> None:
    """Answers are named as the gold is, so that a letter answers a gold given by text."""
    assert extract_choice("#### B", options("heparin", DRUGS)) == Found("Heparin", "hash")


@pytest.mark.parametrize(
    ("text", "answer", "form"),
    [
        ("Let me see. The answer is Mr. Brown. He left first.", "Mr. Brown", "phrase"),
        (r"\boxed{\text{New York}}", "New York", "boxed"),
        ("#### New York", "New York", "hash"),
        ("It lies in the east.\n\nNew York\n", "New York", "last-line"),
        ("", None, "no-answer"),
    ],
)
def test_exact(text: str, answer: str | None, form: str) -> None:
    """Strings come from an explicit form, else they are the last line."""
    assert extract_exact(text) == Found(answer, form)


@pytest.mark.parametrize(
    ("text", "gold", "answer", "form"),
    [
        ("#### [1, 2]", "[1, 2]", "[1, 2]", "hash"),
        ("#### 1 2\n3 4", "1 2\n3 5", "1 2\n3 4", "hash"),
        ("#### 1 2\n3 4", "1 2", "1 2", "hash"),
        ("####\n```\n1 2\n3 4\n```\n", "1 2\n3 5", "1 2\n3 4", "hash"),
        ("\\boxed{1 2\n3 4}", "1 2\n3 5", "1 2\n3 4", "boxed"),
        ("The answer is:\n1 2\n3 4", "1 2\n3 5", "1 2\n3 4", "phrase"),
        ("So I get\n1 2\n3 4\n", "1 2\n3 5", "1 2\n3 4", "last-line"),
        ("So there are 14 of them.", "12", "14", "last-number"),
        ("Sorted:\nant, bee", "ant, bee", "ant, bee", "last-line"),
        ("#### #B B#", "#B B#", "#B B#", "hash"),
        ("none", "12", None, "no-answer"),
    ],
)
def test_gym(text: str, gold: str, answer: str | None, form: str) -> None:
    """The answer is taken as written, over as many lines as the gold asks for."""
    assert extract_gym(text, gold) == Found(answer, form)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_gives_an_answer_or_none(text: str) -> None:
    """No text makes extraction fail, and an answer is never empty."""
    for found in (extract_math(text), extract_exact(text), extract_gym(text, "1\n2"), extract_gym(text, "3")):
        assert (found.answer is None) == (found.form == "no-answer")
        assert found.answer != ""
    assert extract_choice(text, options("A", DRUGS)).answer in (None, "A", "B", "C", "D")


@settings(deadline=None)
@given(st.text(alphabet="\\{}abc #*$1.\n", max_size=60), st.integers(-(10**9), 10**9))
def test_a_final_hash_decides(before: str, value: int) -> None:
    """Whatever comes before, a number after #### on a last line of its own is the answer."""
    assert extract_math(f"{before}\n#### {value}") == Found(str(value), "hash")


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "${}", "{:,}", "{:,} euros", r"\({}\)", "**{:,}**."]))
def test_numbers_survive_their_dress(value: int, dress: str) -> None:
    """Currency, commas, units, Markdown and maths delimiters do not change the number."""
    answer = last_number(f"in all {dress.format(value)}")
    assert answer is not None
    assert int(answer.replace(",", "")) == value
    assert lone_number(clean(dress.format(value))) == answer


@settings(deadline=None)
@given(st.text(max_size=80))
def test_normalising_and_cleaning_are_idempotent(text: str) -> None:
    """A second pass changes nothing."""
    assert clean(clean(text)) == clean(text)
    assert normalised(normalised(text)) == normalised(text)


def test_forms_in_order() -> None:
    """All explicit forms are returned in the order of the text."""
    forms = explicit_forms("#### 1\nThe answer is 2.\n\\boxed{3} #### 4")
    assert [(form.answer, form.form) for form in forms] == [
        ("1", "hash"),
        ("2", "phrase"),
        ("3", "boxed"),
        ("4", "hash"),
    ]


@pytest.mark.parametrize(
    "piece",
    [
        *("\\boxed{", "The answer is 5. ", "#### 5 ", "the answer is $$ ", "1,234", "{", " "),
        *("A or B ", "(", "Heparin ", "A) Aspirin\n", "A, ", "not ", "A is ", "\n"),
    ],
)
def test_endless_repetition_is_quick(piece: str) -> None:
    """A text that repeats itself for tens of thousands of characters, as greedy decoding does, takes no second."""
    text = piece * (50_000 // len(piece))
    start = time.perf_counter()
    extract_math(text)
    extract_exact(text)
    extract_gym(text, "1\n2")
    extract_choice(text, options("A", DRUGS))
    assert time.perf_counter() - start < 2
