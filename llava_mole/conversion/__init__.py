"""Import LLaVA models into a model folder of this project, and export them back.

hub.py            a local folder or file for what the user names
tensors.py        weights of a folder, tensor by tensor, never all at once
plan.py           what will be written: config, processor, and where each tensor comes from
clip.py           a Hugging Face CLIP tower as an open_clip one, and back
pictures.py       Hugging Face image processors as open_clip preprocessing, and back
placeholder.py    the token that pictures stand at
assemble.py       the parts of a source, under plain names, put together into a plan
llava.py          Hugging Face LlavaForConditionalGeneration -> plan
original.py       the LLaVA authors' own folders -> plan
projector_file.py a projector alone, between a language model and a tower that are named -> plan
importing.py      what a source is, and which of the three it goes to
writing.py        plan -> model folder
export.py         model folder -> Hugging Face LlavaForConditionalGeneration
command.py        `llava-mole convert`
"""
