"""Pure decisions: values in, values out.

Does:      judges measurements, chooses levels, turns a capacity into a cap, detects harm to users, divides the cap.
Comes in:  samples, scrapes, times and configuration, all as frozen values.
Goes out:  verdicts, next steps, recommendations, shares.
Imports:   the standard library, numpy, scipy and `errors`. No clock, no I/O, no event loop (checked by import-linter).

Packages, lowest first; each may import those below it, as the contract "topics of core" says:

    publish                                        from a capacity to what is served
    live | admission | simulation | report         live users | when a sweep may start | simulated sweeps | reports
    search                                         which level next, and what the evidence at a level says
    workload                                       probe and live traffic
    records                                        what is measured and stored
    stats                                          quantiles, autocorrelation

`sharing` and `generator_rating` import nothing else of core.
"""
