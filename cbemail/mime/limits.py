"""How much of a message is looked at: every bound of this package, with its reason.

Received mail is the sender's choice in every respect. What lies beyond a bound is left out, never an error: a message
that is too much is still shown, as far as it goes. What a caller of the API sends is refused instead.
"""

# ---- header fields, received

HEADER_BLOCK = 1 << 20  # octets; Postfix, Exim and Dovecot stop between 0.1 and 1 MiB
HEADER_FIELDS = 2_000  # fields; a well-travelled message has about a hundred
FIELD = 256 * 1024  # octets of one value; a To: of 200 KiB (16,000 addresses) exists
ADDRESSES = 2_000  # of one field: 50 rows a page still make a response of sane size
ADDRESS_TOKENS = 10 * ADDRESSES  # words and signs read for them: 50 KB of `""` are 25,000
MESSAGE_IDS = 100  # of References: RFC 5322 has no bound, INN and Thunderbird keep far fewer
SUBJECT = 2_000  # characters that are compared: RFC 5322's longest line is half of that
THREAD_DEPTH = 1_000  # answers to answers that are followed up; real ones go to some hundreds
REPORTED = 200  # recipients of one delivery report; servers must take 100 (RFC 5321 4.5.3.1.8)
PARAMETER_SEGMENTS = 100  # RFC 2231 continuations of one parameter: ~7 KB of file name

# ---- bodies, received

TEXT = 4 << 20  # octets of one text part after transfer decoding; a novel is 1 MB
HTML = 512 * 1024  # characters; the large newsletters are 100-200 KB, Gmail clips at 102 KB
HTML_DEPTH = 128  # open elements; nh3 is quadratic in it, a deep newsletter has 60
HTML_ATTRIBUTES = 64  # of one tag; HTML parsers compare each with all before it
HTML_REFERENCES = 2_000  # `&` and no-break spaces of one text node; nh3 is quadratic in them
DATA_IMAGE = 64 * 1024  # characters of a data: URL that is kept: an icon or a signature
HTML_ATTRIBUTES_SIZE = DATA_IMAGE + 4096  # characters of all attributes of one tag
QUOTE_DEPTH = 16  # levels of ">" that are written; a sender can claim any number

# ---- outgoing

LINE = 76  # where lines are folded (RFC 2047 2, RFC 2045 6.7)
LINE_HARD = 998  # what no line may exceed (RFC 5322 2.1.1)
LOCAL_PART = 64  # octets (RFC 5321 4.5.3.1.1)
DOMAIN = 253  # octets as A-labels: 255 in the DNS's own form (RFC 1035 2.3.4)
ADDRESS = 254  # octets: 256 with the angle brackets (RFC 5321 4.5.3.1.3)
DISPLAY_NAME = 256  # characters; folded, it still fits the hard line
FILENAME = 255  # octets in UTF-8, the bound of every common file system
CUSTOM_HEADERS = 100
REFERENCES = 50  # the root and the latest 49: enough to rebuild any thread
