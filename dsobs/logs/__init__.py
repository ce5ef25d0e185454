"""Log records from files to a sink: at least once while the file exists, and no drop that is not counted.

The way of a record, and the module that owns each step:

    sources   which files there are                       file name patterns → Tail, one per file
    tail      whole lines of one file, through rotation   → Lines
    formats   what a line means                           Lines → Record (start, raw bytes, document)
    transforms  filters, sampling, redaction              Records → fewer or other Records
    batch     documents, ids, bodies                      Records → Batch
    delivery  attempts and what follows (retry)           Batch → Sink, dead letters
    checkpoint  what the sink has acknowledged, on disk   positions, one transaction a tick
    ship      the loop over all of it

The file is the queue: while the sink does not take records, nothing is read. A record's id comes from where it stands
(origin, file, generation, offset) and a hash of its bytes, so that what is sent again is found to be there already.

Shipping runs in a process of its own (`python -m dsobs.logs`, or `dsobs logs ship`), so that it can delay neither
scraping nor alerting nor repair.
"""
