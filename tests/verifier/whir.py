"""WHIR openings of stacked tables at given points: p3-whir 0.8.0 `verify_at` with PrefixProver layout.

Order of the transcript: (the caller) root; initial out-of-domain samples; the claimed values batch by batch; then the
WHIR run proper. All names in quotes below are the labels in the domain separators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from .codec import Reader
from .errors import present, require
from .field import (
    EXT_BITS,
    TWO_ADICITY,
    ZERO,
    Ext,
    P,
    Point,
    element_to_bytes,
    eval_eq,
    eval_multilinear,
    eval_next,
    eval_select,
    expand_from_univariate,
    horner,
    hypercube_point,
    powers,
    two_adic_generator,
)
from .merkle import verify_multiproof
from .transcript import Pattern, Transcript, enter, u64

# -- fixed parameters of our system -------------------------------------------------------------------------------

SECURITY_LEVEL = 112
POW_BITS = 16
STARTING_LOG_INV_RATE = 1
FOLDING = 5
MAX_DIRECT_VARIABLES = 6

Regime = Literal["johnson", "unique"]
# Index of the variant in SecurityAssumption.
_REGIME_INDEX: dict[Regime, int] = {"unique": 0, "johnson": 1}


# -- derivation of the WHIR parameters ----------------------------------------------------------------------------


def _log_eta(log_inv_rate: int) -> float:
    return -(0.5 * log_inv_rate + math.log2(10) + 1.0)


def list_size_bits(log_inv_rate: int, regime: Regime) -> float:
    """log2 of the list size: 1 when decoding uniquely, else the Johnson bound 1 / (2 eta sqrt(rho))."""
    if regime == "unique":
        return 0.0
    return log_inv_rate / 2.0 - (1.0 + _log_eta(log_inv_rate))


def _log_one_minus_delta(log_inv_rate: int, regime: Regime) -> float:
    """delta = (1 - rho) / 2 when decoding uniquely, 1 - sqrt(rho) (1 + 1/20) up to the Johnson bound."""
    if regime == "unique":
        return math.log2(1.0 + math.pow(2.0, -log_inv_rate)) - 1.0
    return math.log2(21.0 / 20.0) - 0.5 * log_inv_rate


def _query_count(log_inv_rate: int, regime: Regime) -> int:
    """Smallest q with (1 - delta)^q <= 2^-(security level - pow bits)."""
    return math.ceil(-float(SECURITY_LEVEL - POW_BITS) / _log_one_minus_delta(log_inv_rate, regime))


def _query_error_bits(log_inv_rate: int, queries: int, regime: Regime) -> float:
    return -float(queries) * _log_one_minus_delta(log_inv_rate, regime)


def _ood_samples(num_variables: int, log_inv_rate: int, regime: Regime) -> int:
    """Smallest number of out-of-domain samples that reaches the security level; none when decoding uniquely."""
    if regime == "unique":
        return 0
    for samples in range(1, 64):
        error = 2.0 * list_size_bits(log_inv_rate, regime) + float(num_variables * samples)
        if float(samples * EXT_BITS) + 1.0 - error >= SECURITY_LEVEL:
            return samples
    raise ValueError("no number of out-of-domain samples suffices")


def _proximity_lines(num_variables: int, log_inv_rate: int, regime: Regime) -> float:
    """log2 of the number of bad challenges of a fold: the domain if decoding uniquely, else the DKT26 line count."""
    if regime == "unique":
        return float(num_variables + log_inv_rate)
    if num_variables == 0:
        return log_inv_rate + (log_inv_rate + math.log2(1.0 - math.pow(2.0, -log_inv_rate))) - 1.0
    m = max(math.ceil(math.pow(2.0, -log_inv_rate / 2.0 - 1.0 - _log_eta(log_inv_rate))), 3)
    log_rho_minus = math.log2(1.0 - math.pow(2.0, -num_variables)) - log_inv_rate
    return 3.0 + (num_variables + log_inv_rate) + 3.0 * math.log2(m + 0.5) - math.log2(3.0) - log_rho_minus


def _folding_pow_bits(num_variables: int, log_inv_rate: int, regime: Regime) -> int:
    """Grinding per folding round: what proximity gaps and the sumcheck term lack."""
    proximity = EXT_BITS - _proximity_lines(num_variables, log_inv_rate, regime)
    sumcheck = EXT_BITS - (list_size_bits(log_inv_rate, regime) + 1.0)
    return math.ceil(max(0.0, SECURITY_LEVEL - min(proximity, sumcheck)))


class Round(NamedTuple):
    """Parameters of one query phase (an intermediate round, or the final one)."""

    num_variables: int  # of the polynomial after the fold that precedes the queries
    log_domain: int  # of the queried codeword before folding
    num_queries: int
    pow_bits: int
    ood_samples: int
    log_inv_rate: int  # of the codeword committed in this round
    folding_pow_bits: int  # of the sumcheck that follows

    @property
    def log_folded_domain(self) -> int:
        """log2 of the number of leaves."""
        return self.log_domain - FOLDING

    @property
    def draws(self) -> int:
        """Number of sampled query indices; 0 means that every leaf is opened, without sampling."""
        return 0 if self.num_queries >= 1 << self.log_folded_domain else self.num_queries


class Config(NamedTuple):
    """What WhirConfig::new derives."""

    regime: Regime
    num_variables: int
    ood_samples: int
    starting_folding_pow_bits: int
    rounds: tuple[Round, ...]
    final: Round
    final_sumcheck_rounds: int


def derive_config(num_variables: int, regime: Regime) -> Config:
    """WhirConfig::new for our fixed parameters; ValueError if the size cannot be handled."""
    if num_variables < FOLDING:
        raise ValueError("fewer variables than one fold")
    folds, remaining = 1, num_variables - FOLDING
    while remaining > MAX_DIRECT_VARIABLES:
        folds, remaining = folds + 1, remaining - FOLDING
    rate = STARTING_LOG_INV_RATE
    log_domain = num_variables + rate
    if log_domain - FOLDING > TWO_ADICITY:
        raise ValueError("folded domain exceeds the two-adic subgroup")
    ood_samples = _ood_samples(num_variables, rate, regime)
    starting_pow = _folding_pow_bits(num_variables, rate, regime)
    variables = num_variables - FOLDING
    rounds = []
    for _ in range(folds - 1):
        next_rate = rate + FOLDING - 1
        queries = _query_count(rate, regime)
        ood = _ood_samples(variables, next_rate, regime)
        combination = EXT_BITS - (math.log2(ood + queries) + list_size_bits(next_rate, regime) + 1.0)
        lacking = SECURITY_LEVEL - min(_query_error_bits(rate, queries, regime), combination)
        rounds.append(
            Round(
                variables,
                log_domain,
                queries,
                math.ceil(max(0.0, lacking)),
                ood,
                next_rate,
                _folding_pow_bits(variables, next_rate, regime),
            )
        )
        variables -= FOLDING
        log_domain -= 1  # rate + FOLDING - next_rate
        rate = next_rate
    queries = _query_count(rate, regime)
    final_pow = math.ceil(max(0.0, SECURITY_LEVEL - _query_error_bits(rate, queries, regime)))
    final_folding_pow = max(0, SECURITY_LEVEL - (EXT_BITS - 1))
    final = Round(variables, log_domain, queries, final_pow, 0, rate, final_folding_pow)
    if (
        max([starting_pow, final_pow, final_folding_pow, *(max(r.pow_bits, r.folding_pow_bits) for r in rounds)])
        > POW_BITS
    ):
        raise ValueError("more grinding needed than the budget allows")
    return Config(regime, num_variables, ood_samples, starting_pow, tuple(rounds), final, remaining)


def opening_error(num_variables: int, num_claims: int, regime: Regime) -> float:
    """The error of one opening: p3-whir's `pcs::security`, summed over its phases."""
    config = derive_config(num_variables, regime)
    field = EXT_BITS - 1
    bits: list[float] = []

    def out_of_domain(variables: int, rate: int, samples: int) -> None:
        if regime == "johnson":
            bits.append(samples * field + 1.0 - 2.0 * list_size_bits(rate, regime) - variables * samples)

    def folds(variables: int, rate: int, grinding: int) -> None:
        reserve = 1.0 if regime == "johnson" else 0.0
        bits.extend(
            [
                field - _proximity_lines(variables, rate, regime) - reserve + grinding,
                field - list_size_bits(rate, regime) - 1.0 + grinding,
            ]
            * FOLDING
        )

    claims = num_claims + config.ood_samples
    if claims > 1:
        bits.append(field - math.log2(claims - 1) - list_size_bits(STARTING_LOG_INV_RATE, regime))
    out_of_domain(num_variables, STARTING_LOG_INV_RATE, config.ood_samples)
    folds(num_variables, STARTING_LOG_INV_RATE, config.starting_folding_pow_bits)
    rate = STARTING_LOG_INV_RATE
    for r in config.rounds:
        out_of_domain(r.num_variables, r.log_inv_rate, r.ood_samples)
        bits.append(_query_error_bits(rate, r.num_queries, regime) + r.pow_bits)
        combined = math.log2(r.ood_samples + r.num_queries) + list_size_bits(r.log_inv_rate, regime) + 1.0
        bits.append(field - combined + r.pow_bits)
        folds(r.num_variables, r.log_inv_rate, r.folding_pow_bits)
        rate = r.log_inv_rate
    bits.append(_query_error_bits(rate, config.final.num_queries, regime) + config.final.pow_bits)
    bits.extend([field - 1.0 + config.final.folding_pow_bits] * config.final_sumcheck_rounds)
    return sum(math.pow(2.0, -b) for b in bits)


# -- the proof as postcard bytes ----------------------------------------------------------------------------------


class Sumcheck(NamedTuple):
    """Quadratic sumcheck messages: (h(0), leading coefficient) per round, and grinding witnesses."""

    polynomials: list[tuple[Ext, Ext]]
    pow_witnesses: list[int]


class Openings(NamedTuple):
    """Opened leaves of one commitment, in query order, and the pruned Merkle proof."""

    extension: bool
    rows: list[list[Ext | int]]
    siblings: list[bytes]


class RoundProof(NamedTuple):
    """Messages of one intermediate round."""

    root: bytes
    ood_answers: list[Ext]
    pow_witness: int
    openings: Openings
    sumcheck: Sumcheck


class Evaluations(NamedTuple):
    """Claimed values of one batch: columns at the point, and columns through the next-row view."""

    current: list[Ext]
    next: list[Ext]


class OpeningProof(NamedTuple):
    """PcsProof."""

    ood_answers: list[Ext]
    initial_sumcheck: Sumcheck
    rounds: list[RoundProof]
    final_poly: list[Ext]
    final_pow_witness: int
    final_openings: Openings
    final_sumcheck: Sumcheck | None
    evaluations: list[Evaluations]


def _read_sumcheck(r: Reader) -> Sumcheck:
    return Sumcheck(r.vec(lambda: (r.ext(), r.ext())), r.vec(r.base))


def _read_openings(r: Reader) -> Openings:
    tag = r.varint()
    require(tag < 2, "unknown kind of query openings")
    item: Callable[[], Ext | int] = r.ext if tag else r.base
    return Openings(tag == 1, r.vec(lambda: r.vec(item)), r.vec(r.digest))


def _read_round(r: Reader) -> RoundProof:
    cap = present(r.option(lambda: r.vec(r.digest)), "round commitment is missing")
    # Stricter than p3, which takes any power of two here and then compares with the first root.
    require(len(cap) == 1, "a round commitment is exactly one root")
    return RoundProof(cap[0], r.vec(r.ext), r.base(), _read_openings(r), _read_sumcheck(r))


def read_opening_proof(r: Reader) -> OpeningProof:
    """Parse a postcard PcsProof at the cursor (does not require the end of the bytes)."""
    ood_answers = r.vec(r.ext)
    initial_sumcheck = _read_sumcheck(r)
    rounds = r.vec(lambda: _read_round(r))
    final_poly = present(r.option(lambda: r.vec(r.ext)), "final polynomial is missing")
    return OpeningProof(
        ood_answers,
        initial_sumcheck,
        rounds,
        final_poly,
        r.base(),
        _read_openings(r),
        r.option(lambda: _read_sumcheck(r)),
        r.vec(lambda: Evaluations(r.vec(r.ext), r.vec(r.ext))),
    )


# -- stacking -----------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Columns opened at one point; `next` lists columns opened through the repeat-last next-row view."""

    current: tuple[int, ...]
    next: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of claimed values."""
        return len(self.current) + len(self.next)


class Layout(NamedTuple):
    """Where the columns of each table lie in the stacked polynomial."""

    num_variables: int
    shapes: tuple[tuple[int, int], ...]  # (variables, width) per table, padded
    order: tuple[int, ...]  # table indices, largest first (among equals: highest index first)
    selectors: tuple[tuple[tuple[int, ...], ...], ...]  # per table and column: the bits that select the slot

    def instance(self) -> list[bytes]:
        """The part of the instance label that every layout sub-protocol starts with."""
        chunks = [u64(self.num_variables), b"\x01", b"\x00", u64(len(self.shapes))]
        for variables, width in self.shapes:
            chunks += [u64(variables), u64(width)]
        return chunks


def plan_layout(table_shapes: Sequence[tuple[int, int]]) -> Layout:
    """Stack the tables: largest first, each column an aligned slot.

    Slot s of size 2^k in a stack of 2^n: the (n - k) bits of the slot number s, in REVERSED order (least significant
    first), are the LAST n - k coordinates of the stacked point; the first k coordinates are the column's own.
    Tables with fewer than FOLDING variables are zero-padded to FOLDING (points must have FOLDING coordinates then).
    """
    if any(variables < 0 or width < 1 for variables, width in table_shapes):
        raise ValueError("a table has at least one column and one row")
    shapes = tuple((max(variables, FOLDING), width) for variables, width in table_shapes)
    cells = sum(width << variables for variables, width in shapes)
    n = max(cells - 1, 0).bit_length()
    order = tuple(sorted(range(len(shapes)), key=lambda i: (shapes[i][0], i), reverse=True))
    selectors: list[tuple[tuple[int, ...], ...]] = [()] * len(shapes)
    offset = 0
    for table in order:
        variables, width = shapes[table]
        slots = []
        for _ in range(width):
            slots.append(tuple(reversed(hypercube_point(offset >> variables, n - variables))))
            offset += 1 << variables
        selectors[table] = tuple(slots)
    return Layout(n, shapes, order, tuple(selectors))


# -- sub-protocols ------------------------------------------------------------------------------------------------


def observe_commitment(transcript: Transcript, root: bytes) -> None:
    """What `commit` and `observe_commitment` absorb: the separator, then the root."""
    enter(transcript, 1, b"p3-sumcheck-layout-commitment", Pattern().message_opaque("commitment"))
    transcript.observe_digest(root)


def verify_quadratic_sumcheck(
    transcript: Transcript, proof: Sumcheck, claim: Ext, rounds: int, pow_bits: int
) -> tuple[list[Ext], Ext]:
    """Rounds of h(0), h(inf): h(1) = claim - h(0); the new claim is h(r). Returns the challenges and the last claim."""
    require(len(proof.polynomials) == rounds, "wrong number of sumcheck rounds")
    require(len(proof.pow_witnesses) == (rounds if pow_bits else 0), "wrong number of sumcheck witnesses")
    if rounds == 0:
        return [], claim
    pattern = Pattern()
    for _ in range(rounds):
        pattern.message_ext("round_poly", 2).pow("round_pow", pow_bits).challenge_ext("round_challenge")
    enter(transcript, 1, b"p3-sumcheck-quadratic", pattern, [b"\x00"])
    challenges = []
    for i, (at_zero, leading) in enumerate(proof.polynomials):
        transcript.observe_exts((at_zero, leading))
        if pow_bits:
            transcript.require_witness(pow_bits, proof.pow_witnesses[i])
        r = transcript.sample_ext()
        at_one = claim - at_zero
        claim = at_zero * (1 - r) + at_one * r + leading * (r * (r - 1))
        challenges.append(r)
    return challenges, claim


def _run_pattern(config: Config) -> Pattern:
    """The steps of the WHIR run."""
    pattern = Pattern().begin("initial_fold").end("initial_fold")
    for r in config.rounds:
        pattern.message_opaque("commitment")
        for _ in range(r.ood_samples):
            pattern.challenge_ext("ood_point").message_ext("ood_answer")
        pattern.pow("query_pow", r.pow_bits)
        if r.draws:
            pattern.challenge_uniform_bits("query_indices", r.log_folded_domain, r.draws)
        pattern.challenge_ext("round_batching").begin("round_fold").end("round_fold")
    final = config.final
    pattern.message_ext("final_poly", 1 << final.num_variables).pow("final_query_pow", final.pow_bits)
    if final.draws:
        pattern.challenge_uniform_bits("final_query_indices", final.log_folded_domain, final.draws)
    if config.final_sumcheck_rounds:
        pattern.begin("final_fold").end("final_fold")
    return pattern


def _run_instance(config: Config, num_batches: int) -> list[bytes]:
    """The instance label of the WHIR run: all parameters."""
    numbers = [
        config.num_variables,
        config.ood_samples,
        num_batches,
        1 << FOLDING,
        SECURITY_LEVEL,
        POW_BITS,
        STARTING_LOG_INV_RATE,
        _REGIME_INDEX[config.regime],
        0,
        FOLDING,  # FoldingFactor::Constant
        FOLDING,
        config.starting_folding_pow_bits,
        config.final_sumcheck_rounds,
        config.final.folding_pow_bits,
        len(config.rounds),
    ]
    for r in config.rounds:
        numbers += [r.log_inv_rate, FOLDING, r.folding_pow_bits]
    return [u64(number) for number in numbers]


def _check_queries(
    transcript: Transcript,
    params: Round,
    pow_witness: int,
    openings: Openings,
    root: bytes,
    first: bool,
    fold_point: Point,
) -> list[tuple[int, Ext]]:
    """Grind, sample the query indices, open the leaves, fold each leaf. Returns (domain point, folded value)."""
    transcript.require_witness(params.pow_bits, pow_witness)
    bits = params.log_folded_domain
    if params.draws:
        indices = [transcript.sample_bits(bits) for _ in range(params.draws)]
    else:
        indices = list(range(1 << bits))
    require(openings.extension != first, "leaves are over the wrong field")
    require(all(len(row) == 1 << FOLDING for row in openings.rows), "leaf of the wrong width")
    leaves = [b"".join(map(element_to_bytes, row)) for row in openings.rows]
    verify_multiproof(root, 1 << bits, indices, leaves, openings.siblings)
    generator = two_adic_generator(bits)
    return [
        (pow(generator, index, P), eval_multilinear(row, fold_point))
        for index, row in zip(indices, openings.rows, strict=True)
    ]


# -- the opening --------------------------------------------------------------------------------------------------


def verify_opening(
    num_variables: int,
    table_shapes: Sequence[tuple[int, int]],
    batches: Sequence[Sequence[Batch | Sequence[int]]],
    points: Sequence[Point],
    root: bytes,
    proof_bytes: bytes,
    transcript: Transcript,
    *,
    regime: Regime,
) -> list[Evaluations]:
    """Verify that the committed tables take the returned values at the given points.

    table_shapes: (variables, columns) per table; batches: per table, the column lists opened at one point each;
    points: one per batch, in the order table by table. The root must have been absorbed (observe_commitment) and the
    points must come from the transcript: neither is absorbed here. Raises VerificationError for a bad proof, and
    ValueError for a caller's mistake. The transcript is unusable after an error.
    """
    reader = Reader(proof_bytes)
    proof = read_opening_proof(reader)
    reader.end()
    return verify_parsed_opening(num_variables, table_shapes, batches, points, root, proof, transcript, regime=regime)


def verify_parsed_opening(
    num_variables: int,
    table_shapes: Sequence[tuple[int, int]],
    batches: Sequence[Sequence[Batch | Sequence[int]]],
    points: Sequence[Point],
    root: bytes,
    proof: OpeningProof,
    transcript: Transcript,
    *,
    regime: Regime,
) -> list[Evaluations]:
    """verify_opening for a proof that is parsed already."""
    layout = plan_layout(table_shapes)
    schedule = _check_request(num_variables, layout, batches, points)
    config = derive_config(num_variables, regime)
    n = config.num_variables

    # 1. Initial out-of-domain samples: they pick one candidate out of the list of codewords near the commitment.
    require(len(proof.ood_answers) == config.ood_samples, "wrong number of initial out-of-domain answers")
    ood_claims = []
    for answer in proof.ood_answers:
        enter(
            transcript,
            1,
            b"p3-sumcheck-layout-ood",
            Pattern().challenge_ext("virtual_point").message_ext("virtual_eval"),
            layout.instance(),
        )
        ood_claims.append((expand_from_univariate(transcript.sample_ext(), n), answer))
        transcript.observe_ext(answer)

    # 2. The claimed values, batch by batch.
    require(len(proof.evaluations) == len(schedule), "wrong number of opened batches")
    for (table, batch), values in zip(schedule, proof.evaluations, strict=True):
        require(
            len(values.current) == len(batch.current) and len(values.next) == len(batch.next),
            "wrong number of opened columns",
        )
        pattern = Pattern()
        if batch.current:
            pattern.message_ext("current_evals", len(batch.current))
        if batch.next:
            pattern.message_ext("next_evals", len(batch.next))
        enter(
            transcript,
            1,
            b"p3-sumcheck-layout-opening",
            pattern,
            [
                *layout.instance(),
                u64(table),
                u64(layout.shapes[table][0]),
                u64(len(batch.current)),
                *map(u64, batch.current),
                u64(len(batch.next)),
                *map(u64, batch.next),
            ],
        )
        transcript.observe_exts(values.current)
        transcript.observe_exts(values.next)

    # 3. The WHIR run.
    num_claims = sum(batch.size for _, batch in schedule)
    _check_claim_budget(num_claims + config.ood_samples, regime)
    require(len(proof.rounds) == len(config.rounds), "wrong number of rounds")
    for params, messages in zip(config.rounds, proof.rounds, strict=True):
        require(params.pow_bits > 0 or messages.pow_witness == 0, "witness given where none is asked for")
    require(config.final.pow_bits > 0 or proof.final_pow_witness == 0, "witness given where none is asked for")
    enter(transcript, 3, b"p3-whir", _run_pattern(config), _run_instance(config, len(schedule)))

    # 3a. Batch all claims with powers of alpha (tables in layout order, then out-of-domain claims), fold once.
    enter(
        transcript,
        1,
        b"p3-sumcheck-layout-batching",
        Pattern().challenge_ext("batching"),
        [*layout.instance(), u64(num_claims), u64(len(ood_claims))],
    )
    alpha = transcript.sample_ext()
    ordered = [i for table in layout.order for i, (t, _) in enumerate(schedule) if t == table]
    claim = ZERO
    alpha_powers = powers(alpha)
    for i in ordered:
        for value in [*proof.evaluations[i].current, *proof.evaluations[i].next]:
            claim = claim + value * next(alpha_powers)
    for _, answer in ood_claims:
        claim = claim + answer * next(alpha_powers)
    fold_point, claim = verify_quadratic_sumcheck(
        transcript, proof.initial_sumcheck, claim, FOLDING, config.starting_folding_pow_bits
    )
    randomness = list(fold_point)

    # 3b. Rounds: new commitment, out-of-domain samples, queries to the previous commitment, next fold.
    round_constraints = []
    for i, (params, messages) in enumerate(zip(config.rounds, proof.rounds, strict=True)):
        transcript.observe_digest(messages.root)
        require(len(messages.ood_answers) == params.ood_samples, "wrong number of out-of-domain answers")
        ood = []
        for answer in messages.ood_answers:
            ood.append((expand_from_univariate(transcript.sample_ext(), params.num_variables), answer))
            transcript.observe_ext(answer)
        queries = _check_queries(transcript, params, messages.pow_witness, messages.openings, root, i == 0, fold_point)
        gamma = transcript.sample_ext()
        gammas = powers(gamma, 1)
        for _, answer in ood:
            claim = claim + answer * next(gammas)
        for _, folded in queries:
            claim = claim + folded * next(gammas)
        round_constraints.append((params.num_variables, gamma, ood, queries))
        fold_point, claim = verify_quadratic_sumcheck(
            transcript, messages.sumcheck, claim, FOLDING, params.folding_pow_bits
        )
        randomness += fold_point
        root = messages.root

    # 3c. The last polynomial in the clear must agree with the queries to the last commitment.
    final = config.final
    require(len(proof.final_poly) == 1 << final.num_variables, "final polynomial of the wrong length")
    transcript.observe_exts(proof.final_poly)
    queries = _check_queries(
        transcript, final, proof.final_pow_witness, proof.final_openings, root, not config.rounds, fold_point
    )
    for x, value in queries:
        require(horner(proof.final_poly, x) == value, "a query disagrees with the final polynomial")
    final_point: list[Ext] = []
    if config.final_sumcheck_rounds:
        final_sumcheck = present(proof.final_sumcheck, "final sumcheck is missing")
        final_point, claim = verify_quadratic_sumcheck(
            transcript, final_sumcheck, claim, config.final_sumcheck_rounds, final.folding_pow_bits
        )
    else:
        # Stricter than p3 0.8.0, which ignores a superfluous final sumcheck.
        require(proof.final_sumcheck is None, "superfluous final sumcheck")
    randomness += final_point

    # 3d. The remaining claim is (combined weights)(randomness) * (final polynomial)(its point).
    weights = _initial_weights(layout, schedule, ordered, points, ood_claims, alpha, randomness)
    for variables, gamma, ood, queries in round_constraints:
        local = randomness[n - variables :]
        gammas = powers(gamma, 1)
        for point, _ in ood:
            weights = weights + next(gammas) * eval_eq(point, local)
        for x, _ in queries:
            weights = weights + next(gammas) * eval_select(x, local)
    require(claim == weights * eval_multilinear(proof.final_poly, final_point), "final WHIR check fails")
    return proof.evaluations


def _initial_weights(
    layout: Layout,
    schedule: Sequence[tuple[int, Batch]],
    ordered: Sequence[int],
    points: Sequence[Point],
    ood_claims: Sequence[tuple[Point, Ext]],
    alpha: Ext,
    randomness: Point,
) -> Ext:
    """sum alpha^i * weight_i(randomness): the weight of a claim is eq (or the next-row kernel) on the column's own
    coordinates times eq on the selector bits behind them."""
    total = ZERO
    alphas = powers(alpha)
    for i in ordered:
        table, batch = schedule[i]
        variables = layout.shapes[table][0]
        own, selecting = randomness[:variables], randomness[variables:]
        for columns, kernel in ((batch.current, eval_eq), (batch.next, eval_next)):
            if columns:
                weight = kernel(points[i], own)
                for column in columns:
                    total = total + next(alphas) * weight * eval_eq(layout.selectors[table][column], selecting)
    for point, _ in ood_claims:
        total = total + next(alphas) * eval_eq(point, randomness)
    return total


def _check_request(
    num_variables: int, layout: Layout, batches: Sequence[Sequence[Batch | Sequence[int]]], points: Sequence[Point]
) -> list[tuple[int, Batch]]:
    """Check what the caller asks for (ValueError) and flatten it to (table, batch) in protocol order."""
    if layout.num_variables != num_variables:
        raise ValueError(f"the tables stack to 2^{layout.num_variables} cells, not 2^{num_variables}")
    if len(batches) != len(layout.shapes):
        raise ValueError("one list of batches per table is needed")
    schedule = [
        (table, batch if isinstance(batch, Batch) else Batch(tuple(batch)))
        for table, group in enumerate(batches)
        for batch in group
    ]
    if len(points) != len(schedule):
        raise ValueError("one point per batch is needed")
    for (table, batch), point in zip(schedule, points, strict=True):
        variables, width = layout.shapes[table]
        if len(point) != variables:
            raise ValueError("point of the wrong length")
        for side in (batch.current, batch.next):
            if len(set(side)) != len(side) or any(not 0 <= column < width for column in side):
                raise ValueError("bad column list")
        if not batch.size:
            raise ValueError("empty batch")
    return schedule


def _check_claim_budget(num_claims: int, regime: Regime) -> None:
    """Batching num_claims claims must keep the security level: a limit on the request, not on the proof."""
    if num_claims > 1:
        bits = (EXT_BITS - 1) - math.log2(num_claims - 1) - list_size_bits(STARTING_LOG_INV_RATE, regime)
        if bits < SECURITY_LEVEL:
            raise ValueError("too many claims for the security level")
