"""The times, in seconds, that processes wait for one another and for what they share, each with its reason."""

import signal

# A process group (distributed/process_group.py)
JOIN = 600.0  # for all processes at the rendezvous: machines of one job start minutes apart
COLLECTIVE = 7200.0  # for an all-reduce, broadcast or gather: one process may save a large model while the others wait
SEEN = 60.0  # for a mounted folder to show another machine a new file
SEEN_POLL = 0.5  # between two looks at that folder: each is a request over the network

# How its processes end together (distributed/failure.py)
CONNECT = 30.0  # for a connection to the main process, which is listening before it says where, and for its welcome
GREETING = 10.0  # for whoever connects to the main process to show that it is of the run: one packet, sent at once
KEEPALIVE = (10, 5, 3)  # quiet before the kernel probes, between probes, number of probes
ACKNOWLEDGED = 15.0  # for the other machine's kernel to take what was sent: a PULSE later lost, so after 10 + 15 = 25
KNOWN = 2.5  # for word of a lost process: a collective may fail before it is known whom it has lost
HURRIED = 0.5  # for word of what a SIGTERM follows from: launchers end all processes when one has failed
LEAVE = 5.0  # for a process to end by itself once another is lost; 25 + 5 keep to the 30 that are promised
SPEAK = 15.0  # for the main process to end first, which speaks for all: LEAVE and what it has to close

# Runs that don't move (distributed/hangs/)
PULSE = 10.0  # between two words of a process about its progress, and two looks: hang_timeout is minutes
PULSES = 40.0  # of them at least in the longest limit, and 10 in that of a step, however short they are made
SHOWN = 5.0  # for the stacks to be shown, and for the error: the log may lie on the mount that has stalled
WORKER_STACK = 0.2  # for a worker to show its own: they would mix

# An entry point as a process (core/process.py)
TURN = 10.0  # for the main process to find and say what is wrong, before launchers end all because of one

# A step of a pipeline (azure/processes.py)
STOP = {signal.SIGINT: 15.0, signal.SIGTERM: 60.0}  # between a signal and SIGKILL: after a SIGTERM processes save
STEP_POLL = 0.05  # between two looks at the processes of a step: no user notices it

# A run on Azure ML (azure/service/)
JOB_SETTLED = 120.0  # for the job to say that it has ended, which its run history says first
JOB_POLL = 2.0  # between two looks at it
BATCH_OF_FILES = 3600  # for a batch endpoint to answer 10 files; Azure ML's own 30 s are those of small models
DEPLOYMENT_POLL = 15.0  # between two signs of life of an endpoint or a deployment in the making: 5 to 20 minutes

# A secret (azure/vault.py)
VAULT = 20.0  # for an answer of the key vault, four times: one behind a firewall may say nothing at all

# One run in a folder (core/lock.py)
BEAT = 10.0  # between two signs of life in the lock: on a mounted folder each is an upload
SILENT = 120.0  # without one after which a run on another machine is gone: a save of 6 GB has been silent for 34
LOCK_POLL = 0.5  # between two looks at a lock that is held
TOLD = 3.0  # of waiting before the user is told why

# A build of DeepSpeed's kernels (distributed/zero_engine.py)
STALE = 30.0  # that a lock must be old: a build that has just begun may not have its compiler yet
STALE_POLL = 0.5  # between two looks at it: builds take a minute
