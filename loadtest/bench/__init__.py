"""The benchmark: `headrace bench`. From a topic through a model to a topic, beside a plain copy of it and beside peers.

    workload.py    what flows: events of some kind, and the model for them
    subjects.py    who is measured: the bridge, a copy, the peers of loadtest/peers
    measure.py     one measurement: a backlog drained, or a fixed rate held
    scenarios.py   which measurements belong together
    run.py         all of them, in alternating rounds, on one set of servers
    report.py      tables, JSON, a page with plots

Everything is real and shares the machine: a Kafka, a Triton, one process under test. Absolute figures differ from
machine to machine, so each is printed beside the copy's of the same round.
"""
