"""`slipstream tune`: finds the layer plan with which the pipeline is fastest, by measuring.

The full model answers the tuning prompts once. A candidate then drafts along these answers, with
the context that it will have in production; from how far its runs of drafts agree, and from what
its steps cost on this machine, follow the accepted tokens per second of the pipeline. The best
candidates run in the real pipeline before one is chosen.
"""
