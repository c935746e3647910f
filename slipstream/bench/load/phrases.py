"""The stuff that made-up chats are of: what people ask, about what, and what they paste."""

TOPICS = (
    "a garden on a north-facing slope", "the old tram line", "a sourdough that will not rise",
    "moving a small database to another host", "the tides at the harbour", "learning the cello",
    "a leaking bicycle pump", "the budget of a village fair", "migrating storks",
    "a broken unit test", "the history of the postal service", "a film about lighthouse keepers",
    "insulating an attic", "a dispute over a hedge", "the rules of handball",
    "a trip by night train", "roasting coffee at home", "a letter to the landlord",
    "sorting a box of photographs", "the smell of rain", "a spreadsheet of club members",
    "teaching fractions to a child",
)  # fmt: skip
OPENINGS = (
    "Can you help me with {topic}? I do not know where to start.",
    "Explain {topic} to me as if I had never heard of it.",
    "I have to give a short talk about {topic} tomorrow. Suggest an outline.",
    "Write a friendly message to a colleague about {topic}.",
    "What are the three most common mistakes with {topic}?",
    "Make a list of questions that I should ask an expert on {topic}.",
    "Tell me something surprising about {topic}.",
    "Compare two ways to deal with {topic}, and say which you would choose.",
)
FOLLOW_UPS = (
    "Make that shorter, please.", "Why?", "Now the same for someone in a hurry.",
    "Which of these would you do first, and why?", "Rewrite it in a more formal tone.",
    "Give me an example.", "That is not quite what I meant. I am more interested in {topic}.",
    "What could go wrong with that?", "Put it into a table with two columns.",
    "Thank you! And how does this apply to {topic}?", "Are you sure about the second point?",
    "Continue.", "Translate your answer to French.", "Sum it up in one sentence.",
)  # fmt: skip
PASTES = (
    "Here are my notes on {topic}. Summarize them:\n\n{passage}",
    "Someone sent me this about {topic}. What do they want from me?\n\n{passage}",
    "Read this text on {topic} and find its weakest argument.\n\n{passage}",
)
# Filled from the words below, a sentence at a time.
SENTENCES = (
    "In {year} {who} wrote that {what} had changed more in {number} months than in a lifetime.",
    "Nobody at {place} could say whether {what} was worth {number} crowns.",
    "{who} keeps a ledger of {what}, and reads from it on the first Monday of the month.",
    "The committee of {place} met {number} times and agreed on {what} only once.",
    "Where {what} is concerned, {who} prefers to wait until the weather turns.",
    "A report of {year} counts {number} cases in which {what} failed without warning.",
    "{who} asked {place} for help with {what}, and was told to come back in {number} days.",
    "It is easy to forget that {what} came to {place} by boat, in {number} crates.",
    "Measured over {number} weeks, {what} cost a little less than {who} had feared.",
    "The last page says in pencil: ask {who} about {what} before anything is signed.",
)
WHO = (
    "the harbour master", "my aunt", "the younger of the two clerks", "a surveyor from the coast",
    "Mrs Okafor", "the night porter", "the choir", "a retired engineer", "the miller's daughter",
)  # fmt: skip
WHAT = (
    "the second lamp", "the drainage plan", "the spare key", "the winter timetable",
    "the grain store", "the new ledger", "the ferry", "the seed order", "the bell",
    "the heating", "the footbridge",
)  # fmt: skip
PLACES = (
    "Harlow Mills", "the upper lock", "the school", "Brae", "the town hall", "the mountain hut",
    "the printing works", "Canal Street", "the old brewery",
)  # fmt: skip
