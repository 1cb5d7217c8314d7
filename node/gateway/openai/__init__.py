"""`/v1`: what OpenAI's clients expect, one file for each kind of body and of answer; `routes.py` composes them.

A body passes from bytes (`*_body.py`) to a `ChatRequest` of the node's own terms; what comes back becomes an answer
(`*_answer.py`). `writing.py` answers what a model writes, `embedding.py` what it reads.
"""
