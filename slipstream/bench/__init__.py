"""The benchmark behind `slipstream bench`: our configurations and transformers', interleaved.

Time is taken at the client: of the gRPC stream of VerifierService.Generate for our rows (the
gateway is not in the path), around `generate()` for those of transformers.
"""
