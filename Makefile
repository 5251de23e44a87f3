# Every target sets up .venv by itself; without make, type ./dev.py TARGET instead.
TASK ?= question_answering
BENCH ?=

.PHONY: demo bench test test-fast test-all test-distributed test-chaos test-azure test-compression test-ort test-environments check format
demo:
	python3 dev.py demo $(TASK)
bench:
	python3 dev.py bench $(BENCH)
test test-fast test-all test-distributed test-chaos test-azure test-compression test-ort test-environments check format:
	python3 dev.py $@
