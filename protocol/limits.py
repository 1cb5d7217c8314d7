"""Every bound of the protocol, with its unit and its reason. A peer that goes over one is refused, never obeyed."""

KIB = 1024
MIB = 1024 * KIB

# --- bytes -------------------------------------------------------------------------------------------------------
ADVERT_BYTES_MAX = 2 * KIB  # kept for each known peer, and sent often
BID_BYTES_MAX = 1 * KIB
AWARD_BYTES_MAX = 2 * KIB
MARKET_BYTES_MAX = 8 * KIB  # requests and incomes
RECEIPT_BYTES_MAX = (
    4 * KIB
)  # its countersignature carries it, and the income carries that and the award in 8 KiB
COUNTERSIGNATURE_BYTES_MAX = 5 * KIB
ASSEMBLY_BYTES_MAX = 32 * KIB  # a charter with a full roll fits
GOSSIP_BYTES_MAX = 64 * KIB
HELLO_BYTES_MAX = 96 * KIB  # 256 heads and a sample of 20 adverts
PROMPT_BYTES_MAX = 256 * KIB  # a 64k-token context in English is about this
TOKEN_FRAME_BYTES_MAX = 8 * KIB  # 64 ids, and 1,024 characters of four bytes each
ENTRIES_BYTES_MAX = 256 * KIB  # one answer of `sync`: also the size of a blob chunk
BLOB_CHUNK_BYTES_MAX = 256 * KIB
BLOB_BYTES_MAX = 64 * MIB  # adapters and updates
# of one author, kept by each that it trades with. A job bought is 1.6 KiB of it, one sold 3: 250 sold a day for a year.
# Entries cost their author a signature, so without it one hostile member could fill the disk of whoever sells to it.
BILATERAL_LOG_BYTES_MAX = 256 * MIB

MANIFEST_BYTES_MAX = 16 * KIB  # provenance of 64 members and the scores of 64 domains, before and after
VOTE_BYTES_MAX = 6 * KIB  # the scores of 32 domains with long names, and a reason

# --- decoding ----------------------------------------------------------------------------------------------------
DEPTH_MAX = 16  # nested containers in one message: deeper is an attack on the stack
ITEMS_MAX = 65_536  # elements of one list or map: the token ids of a full context fit

# --- counts ------------------------------------------------------------------------------------------------------
ROLL_MAX = 128  # voters of a charter
MODELS_PER_ADVERT_MAX = 8
ADAPTERS_PER_OFFER_MAX = 4  # the newest; more are named on request
ADVERTS_PER_HELLO_MAX = 20
HEADS_PER_HELLO_MAX = 256
ADDRESSES_MAX = 16
ENTRIES_PER_ANSWER_MAX = 256
RECEIVED_TOKENS_MAX = 32_768  # token ids handed to the next seller on failover
INPUTS_MAX = 256  # texts of one embedding job
# of an embedding model's vectors: four times the widest in use, and few enough that what came of one fits into `received`
DIMENSIONS_MAX = 16_384
LOGIT_BIASES_MAX = 300  # as OpenAI allows
LOGIT_BIAS_MILLI_MAX = 100_000
CONSTRAINT_CHARS_MAX = (
    16_384  # of a JSON schema or a grammar: a hundred fields; grammars are llama.cpp's weakest surface
)
TOP_LOGPROBS_MAX = 20  # as OpenAI allows
CONTRAST_MILLI_MAX = 2**31 - 1  # either way; no two logits of a sane model are a thousand apart
TOKEN_BYTES_MAX = 256  # of one token's text in a log-probability; longer ones are cut
PREFIX_BYTES = 8  # of the digest of a system prompt: enough to find it again, too few to prove it
WARM_PREFIXES_MAX = 8  # in an advert of 2 KiB
OWNER_CHARS_MAX = 64
NAME_CHARS_MAX = 64
ADDRESS_CHARS_MAX = 256
DETAIL_CHARS_MAX = 256  # free text for a human, shown escaped and never acted on

# --- time --------------------------------------------------------------------------------------------------------
LIVE_WINDOW_S = 60.0  # a live message is taken within ± this of our clock
HELLO_TIMEOUT_S = 3.0  # no valid hello by then: the connection is closed
ADVERT_INTERVAL_MIN_S = 10.0  # at most one advert per this
ADVERT_INTERVAL_IDLE_S = 60.0  # when nothing changed
ADVERT_TTL_S = 180.0  # three missed idle adverts: the seller is forgotten
ADVERT_HANDED_ON_S = 30.0  # what an advert must still have to live, to be handed on: clocks differ
BID_WINDOW_MIN_S = 0.05
BID_WINDOW_MAX_S = 1.0
BID_OVERTIME_MAX_S = 3.0  # and an auction without a bid stays open so long, where links are slow
BID_OVERTIME_ROUND_TRIPS = 3.0  # two to open a stream and to ask, one to spare
BID_WINDOW_ROUND_TRIPS = 3.0  # the window is this times the asked peers' p90 round trip
# a blob's chunk of 256 KiB comes within this, or another holder is asked: 9 KB/s, what a slow phone still sends
BLOB_CHUNK_TIMEOUT_S = 30.0
STALL_TIMEOUT_S = 2.0  # no token and no progress frame for this long: the seller has failed
PROGRESS_INTERVAL_S = 0.5
STANDSTILL_S = 20.0  # progress frames that tell nothing new for this long: the seller has failed
UNREAD_S = 60.0  # nobody reads what a seller sends for this long: the buyer has gone
PACE_JUDGED_S = 15.0  # of answering; before that a pace says little
PACE_SHARE_MIN = 0.1  # of the speed that was bid; a warm and busy device has a quarter of it
INPUT_READ_S_MAX = 60.0  # of an embedding, by a slow device: 512 tokens at 10 a second
GAPS_PER_S_MIN = 1.0  # of a check, once they come: they are read, not written
LEASE_IDLE_S = 600.0  # a session's lease ends after this long without a request
INVITATION_TTL_S_MAX = 30 * 24 * 3600.0

# --- replay windows ----------------------------------------------------------------------------------------------
SEQUENCE_WINDOW = 1_024  # sequence numbers behind the newest that a sender may still use, once each
DEDUPE_MAX = 65_536  # envelope hashes remembered
OPENED_ENTRIES_MAX = 512  # verified envelopes kept by their bytes: gossip brings each about twice
OPENED_BYTES_MAX = 8 * KIB  # larger ones are not kept: 4 MiB in all
SENDERS_MAX = 8_192  # senders whose windows are kept; the one heard least recently goes first

# --- rates -------------------------------------------------------------------------------------------------------
PEER_MESSAGES_PER_S = 200.0  # envelopes one peer may deliver, burst twice that
# of one author, whoever delivers them, burst twice that. A chat takes five or six of its buyer's, and a busy buyer asks
# 15 chats a second: at 50 honest buyers were barred. Checking so many costs 5 % of a core.
AUTHOR_MESSAGES_PER_S = 150.0
TOKENS_PER_REQUEST_DEFAULT = 1_024  # the cap when a client names none
TOKENS_PER_REQUEST_MAX = 32_768

# --- market ------------------------------------------------------------------------------------------------------
SELLERS_ASKED_MAX = 8  # K: the best sellers that a spot request asks
WINDOWS_MISSED_MAX = 2  # a peer that missed this many windows in a row is asked but not waited for
ATTEMPTS_MAX = 5  # sellers tried for one job before the client is told

# --- assembly ----------------------------------------------------------------------------------------------------
ROLL_LOG_ENTRIES_MAX = 16_384  # a device a day for 40 years
INVITATION_CHARS_MAX = 12 * KIB  # an invitation of 8 KiB, its seed, mesh id and checksum, in base64
CREDIT_LINE_MICRO_DEFAULT = 10_000_000  # 10 credits: what a device may owe before it has earned anything
# manifests and evidence of one that is not on the roll, kept by every member: 9 MiB at the worst
MEMBER_LOG_ENTRIES_MAX = 256
# of one author, whoever it is: thirty thousand votes of 1 KiB. Manifests and evidence are larger, and dated as one likes.
ASSEMBLY_LOG_BYTES_MAX = 32 * MIB

# --- lines and patches ---------------------------------------------------------------------------------------------
PROPOSALS_PER_DAY_MAX = (
    4  # manifests of one author within 24 h of signed time: each costs every voter an evaluation
)
MANIFEST_TTL_S_MAX = 90 * 24 * 3600.0
VERSIONS_SKIPPED_MAX = (
    1_000  # above the ratified one; failed ballots use numbers up, and no leap may use up all
)
DOMAINS_MAX = 32  # of one line's public evaluation set
COHORT_MAX = 32  # members of one run
RANK_MAX = 64
EVALUATION_SAMPLES_MAX = 4_096  # of one line
PRIVATE_SAMPLES_MIN = (
    50  # held-out samples below which a voter has no private verdict: the verdict would leak them
)

# --- training ------------------------------------------------------------------------------------------------------
ENLIST_WINDOW_S = 10.0  # how long a run waits for bids
ROUND_TIMEOUT_S = 900.0
ROUNDS_MAX = 1_000
STEPS_PER_ROUND_MAX = 10_000
COHORT_MIN_DEFAULT = 3  # participants refuse a smaller one: the update of one alone is its own
EPSILON_MILLI_MAX_DEFAULT = 8_000
EPSILON_MILLI_MAX = 1_000_000  # a budget of 1,000 protects nobody; who wants none says so
