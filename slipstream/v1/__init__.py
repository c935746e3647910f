"""Generated from protos/ by `make proto`. Import it through slipstream.wire.proto."""
