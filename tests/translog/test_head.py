"""Heads and proofs of the log: what is not signed, shrank, forked or was edited is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import DecodeError, LogProofError, SignatureError, VerificationError
from fedsec.merkle import EMPTY_ROOT, MAX_SIZE, consistency_proof, inclusion_proof, leaf_hash, merkle_root
from fedsec.signing import Signer, VerificationCache
from fedsec.translog.entries import EntryKind, LogEntry
from fedsec.translog.head import (
    HEAD_LABEL,
    SIGNED_HEAD_BYTES,
    KeptHead,
    SignedHead,
    TreeHead,
    VerifiedHead,
    check_extension,
    log_id,
    sign_head,
    verify_head,
)
from fedsec.translog.proof import MAX_LOG_PROOF_BYTES, MAX_PROOF_HASHES, LogProof, verify_log_proof

LOG, OTHER = Signer.generate(), Signer.generate()
NOW = 1_790_000_000
ENTRIES = [LogEntry(EntryKind.ROUND, b"round %d" % number).encode() for number in range(12)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
REFUSALS = (DecodeError, VerificationError)


def signed(leaves, *, signer=LOG, now_s=NOW):
    return sign_head(signer, size=len(leaves), root=merkle_root(leaves), now_s=now_s)


def verified(leaves):
    return verify_head(signed(leaves).encode(), LOG.public_key)


def kept(leaves):
    return KeptHead(size=len(leaves), root=merkle_root(leaves))


def bundle(leaves, index, old_size, **kwargs):
    return LogProof(
        signed=signed(leaves, **kwargs),
        old_size=old_size,
        index=index,
        consistency=consistency_proof(leaves, old_size),
        inclusion=inclusion_proof(leaves, index),
    )


def check(proof, *, before, entry, key=LOG.public_key):
    return verify_log_proof(proof, log_public_key=key, kept=before, entry=entry)


def flips(data):
    """The same bytes with one bit of one byte flipped, for every byte."""
    for position in range(len(data)):
        yield data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :]


def test_the_encoding_of_a_head_is_this_one():
    head = TreeHead(log_id=bytes(range(32)), size=258, root=b"\xaa" * 32, timestamp_s=3)
    assert head.encode().hex() == "4653544801" + bytes(range(32)).hex() + "0000000000000102" + "aa" * 32 + "0000000000000003"
    assert TreeHead.decode(head.encode()) == head
    assert KeptHead.decode(KeptHead(size=5, root=b"\xbb" * 32).encode()) == KeptHead(size=5, root=b"\xbb" * 32)
    assert KeptHead(size=5, root=b"\xbb" * 32).encode().hex() == "46534b4801" + "0000000000000005" + "bb" * 32


def test_a_signed_head_verifies_under_the_logs_key_only():
    data = signed(LEAVES).encode()
    assert len(data) == SIGNED_HEAD_BYTES
    assert SignedHead.decode(data).encode() == data
    head = verify_head(data, LOG.public_key).head
    assert head == TreeHead(log_id=log_id(LOG.public_key), size=12, root=merkle_root(LEAVES), timestamp_s=NOW)
    with pytest.raises(LogProofError):
        verify_head(data, OTHER.public_key)


def test_a_head_in_the_logs_name_by_another_key_is_refused():
    head = signed(LEAVES).head
    with pytest.raises(SignatureError):
        verify_head(SignedHead(head, OTHER.sign(HEAD_LABEL, head.encode())).encode(), LOG.public_key)
    with pytest.raises(SignatureError):
        verify_head(SignedHead(head, LOG.sign("fedsec/translog/v1/other", head.encode())).encode(), LOG.public_key)


def test_any_flipped_byte_and_any_other_length_of_a_signed_head_is_refused():
    data = signed(LEAVES).encode()
    for bad in (*flips(data), *(data[:length] for length in range(len(data))), data + b"\0"):
        with pytest.raises(REFUSALS):
            verify_head(bad, LOG.public_key)


@pytest.mark.parametrize(
    "change",
    [{"size": -1}, {"size": MAX_SIZE + 1}, {"root": bytes(31)}, {"log_id": bytes(33)}, {"timestamp_s": -1}, {"timestamp_s": 2**63}],
)
def test_a_head_out_of_range_is_not_made(change):
    with pytest.raises(ValueError):
        TreeHead(**({"log_id": bytes(32), "size": 0, "root": EMPTY_ROOT, "timestamp_s": 0} | change))


def test_numbers_out_of_range_are_not_read():
    data = signed(LEAVES).head.encode()
    for start in (37, 77):
        with pytest.raises(DecodeError):
            TreeHead.decode(data[:start] + b"\xff" * 8 + data[start + 8 :])
    keep = kept(LEAVES).encode()
    for bad in (keep[:5] + b"\xff" * 8 + keep[13:], keep[:-1], keep + b"\0", b"FSKH\x02" + keep[5:], b""):
        with pytest.raises(DecodeError):
            KeptHead.decode(bad)


def test_every_growth_is_believed_and_gives_what_to_keep():
    for new in range(len(LEAVES) + 1):
        assert check_extension(None, verified(LEAVES[:new]), ()) == kept(LEAVES[:new])
        for old in range(new + 1):
            proof = consistency_proof(LEAVES[:new], old)
            assert check_extension(kept(LEAVES[:old]), verified(LEAVES[:new]), proof) == kept(LEAVES[:new])


def test_a_log_that_shrank_is_refused():
    for new in range(len(LEAVES)):
        for proof in ((), consistency_proof(LEAVES, new), consistency_proof(LEAVES[:new], 0)):
            with pytest.raises(LogProofError, match="shrank"):
                check_extension(kept(LEAVES), verified(LEAVES[:new]), proof)


def test_another_history_of_the_same_size_is_refused():
    forked = [*LEAVES[:-1], leaf_hash(b"another")]
    with pytest.raises(LogProofError, match="two histories"):
        check_extension(kept(LEAVES), verified(forked), ())


def test_an_empty_log_has_the_empty_root():
    lie = VerifiedHead(TreeHead(log_id=log_id(LOG.public_key), size=0, root=LEAVES[0], timestamp_s=NOW))
    with pytest.raises(LogProofError):
        check_extension(None, lie, ())


def test_a_rewritten_or_unproven_growth_is_refused():
    for position in range(5):
        rewritten = [*LEAVES[:position], leaf_hash(b"rewritten"), *LEAVES[position + 1 :]]
        for proof in (consistency_proof(rewritten, 5), consistency_proof(LEAVES, 5), ()):
            with pytest.raises(LogProofError):
                check_extension(kept(LEAVES[:5]), verified(rewritten), proof)
    for proof in ((), consistency_proof(LEAVES, 4), consistency_proof(LEAVES[:11], 5), (*consistency_proof(LEAVES, 5), LEAVES[0])):
        with pytest.raises(LogProofError):
            check_extension(kept(LEAVES[:5]), verified(LEAVES), proof)
    with pytest.raises(LogProofError):
        check_extension(None, verified(LEAVES), (LEAVES[0],))


def test_a_log_proof_comes_back_and_verifies():
    for size in (1, 2, 7, 12):
        for index in range(size):
            for old in range(size + 1):
                proof = bundle(LEAVES[:size], index, old)
                assert LogProof.decode(proof.encode()) == proof
                before = kept(LEAVES[:old]) if old else None
                assert check(proof.encode(), before=before, entry=ENTRIES[index]) == kept(LEAVES[:size])


@pytest.mark.parametrize(("index", "old"), [(0, 0), (4, 3), (11, 8), (6, 12)])
def test_any_flipped_byte_of_a_log_proof_is_refused(index, old):
    data = bundle(LEAVES, index, old).encode()
    before = kept(LEAVES[:old])
    check(data, before=before, entry=ENTRIES[index])
    for bad in flips(data):
        with pytest.raises(REFUSALS):
            check(bad, before=before, entry=ENTRIES[index])


def test_any_other_length_of_a_log_proof_is_refused():
    data = bundle(LEAVES, 4, 3).encode()
    for bad in (*(data[:length] for length in range(len(data))), data + b"\0", data + bytes(32), data + bytes(MAX_LOG_PROOF_BYTES)):
        with pytest.raises(DecodeError):
            LogProof.decode(bad)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_hostile_counts_and_numbers_are_refused(old_count, count, old_size, index):
    honest = bundle(LEAVES, 4, 3)
    data = honest.encode()
    numbers = old_size.to_bytes(8, "big") + index.to_bytes(8, "big")
    if (old_size, index) != (3, 4):
        with pytest.raises(REFUSALS):
            check(data[:5] + numbers + data[21:], before=kept(LEAVES[:3]), entry=ENTRIES[4])
    if (old_count, count) != (len(honest.consistency), len(honest.inclusion)):
        with pytest.raises(REFUSALS):
            check(data[:21] + bytes([old_count, count]) + data[23:], before=kept(LEAVES[:3]), entry=ENTRIES[4])
        padded = data[:21] + bytes([old_count, count]) + data[23 : 23 + SIGNED_HEAD_BYTES] + bytes(32 * (old_count + count))
        with pytest.raises(REFUSALS):
            check(padded, before=kept(LEAVES[:3]), entry=ENTRIES[4])


def test_a_proof_with_too_many_or_odd_hashes_is_not_made():
    fields = {"signed": signed(LEAVES), "old_size": 0, "index": 0, "consistency": (), "inclusion": ()}
    most = LogProof(**(fields | {"consistency": (bytes(32),) * MAX_PROOF_HASHES, "inclusion": (bytes(32),) * MAX_PROOF_HASHES}))
    assert len(most.encode()) == MAX_LOG_PROOF_BYTES
    for change in (
        {"consistency": (bytes(32),) * (MAX_PROOF_HASHES + 1)},
        {"inclusion": (bytes(32),) * (MAX_PROOF_HASHES + 1)},
        {"inclusion": (bytes(31),)},
        {"index": -1},
        {"old_size": MAX_SIZE + 1},
    ):
        with pytest.raises(ValueError):
            LogProof(**(fields | change))


def test_a_proof_of_another_entry_place_log_or_start_is_refused():
    data = bundle(LEAVES, 4, 3).encode()
    before = kept(LEAVES[:3])
    check(data, before=before, entry=ENTRIES[4])
    cases = [
        {"before": before, "entry": ENTRIES[5]},
        {"before": before, "entry": b""},
        {"before": None, "entry": ENTRIES[4]},
        {"before": kept(LEAVES[:4]), "entry": ENTRIES[4]},
        {"before": KeptHead(size=3, root=LEAVES[0]), "entry": ENTRIES[4]},
        {"before": before, "entry": ENTRIES[4], "key": OTHER.public_key},
        {"before": before, "entry": ENTRIES[4], "key": LOG.public_key[:-1]},
    ]
    for case in cases:
        with pytest.raises(VerificationError):
            check(data, **case)
    with pytest.raises(LogProofError):
        check(bundle(LEAVES, 4, 3, signer=OTHER).encode(), before=before, entry=ENTRIES[4])


def test_one_cache_serves_many_clients_and_remembers_no_lie():
    data, cache = bundle(LEAVES, 4, 0).encode(), VerificationCache()
    for _ in range(3):
        verify_log_proof(data, log_public_key=LOG.public_key, kept=None, entry=ENTRIES[4], verify=cache)
    assert (cache.hits, cache.misses) == (2, 1)
    forged = data[:23] + SignedHead(signed(LEAVES[:11]).head, signed(LEAVES).signature).encode() + data[23 + SIGNED_HEAD_BYTES :]
    with pytest.raises(SignatureError):
        verify_log_proof(forged, log_public_key=LOG.public_key, kept=None, entry=ENTRIES[4], verify=cache)
