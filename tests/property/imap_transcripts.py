"""What IMAP servers say, each in its own manner: seeds for the properties of the framer and the parser."""

DOVECOT = (
    b"* OK [CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ AUTH=PLAIN] "
    b"Dovecot ready.\r\n"
    b'* LIST (\\HasNoChildren \\UnMarked \\Sent) "/" Sent\r\n'
    b'* LIST (\\HasChildren) "/" "Entw&APw-rfe &- Co"\r\n'
    b"* STATUS INBOX (MESSAGES 2 UIDNEXT 8 UIDVALIDITY 1767225600 UNSEEN 1)\r\n"
    b"* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft $Forwarded NonJunk)\r\n"
    b"* OK [PERMANENTFLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft $Forwarded \\*)] "
    b"Flags permitted.\r\n"
    b"* 2 EXISTS\r\n* 0 RECENT\r\n"
    b"* OK [UNSEEN 2] First unseen.\r\n* OK [UIDVALIDITY 1767225600] UIDs valid\r\n"
    b"* OK [HIGHESTMODSEQ 31] Highest\r\n"
    b"A3 OK [READ-WRITE] Select completed (0.001 + 0.000 secs).\r\n"
    b'* 1 FETCH (UID 7 FLAGS (\\Seen) INTERNALDATE "01-Feb-2026 10:00:00 +0000" '
    b'RFC822.SIZE 2211 BODYSTRUCTURE (("text" "plain" ("charset" "utf-8") NIL NIL '
    b'"quoted-printable" 52 3 NIL NIL NIL NIL)("application" "pdf" ("name" "q3.pdf") NIL NIL '
    b'"base64" 1200 NIL ("attachment" ("filename" "q3.pdf")) NIL NIL) "mixed" ("boundary" "b1") '
    b"NIL NIL NIL) BODY[HEADER.FIELDS (FROM SUBJECT)] {45}\r\n"
    b"From: Ann <ann@example.org>\r\nSubject: Q3 :(\r\n)\r\n"
    b"* VANISHED (EARLIER) 1:6\r\n"
    b'* ESEARCH (TAG "A5") UID MIN 7 MAX 9 COUNT 3 ALL 7:9\r\n'
    b"A6 OK [COPYUID 1767225601 7,9 3:4] Move completed.\r\n"
)

GMAIL = (
    b"* OK Gimap ready for requests from 192.0.2.1 x12mb123456wrq\r\n"
    b"* CAPABILITY IMAP4rev1 UNSELECT IDLE NAMESPACE QUOTA ID XLIST CHILDREN X-GM-EXT-1 UIDPLUS\r\n"
    b'* LIST (\\HasChildren \\Noselect) "/" "[Gmail]"\r\n'
    b'* LIST (\\All \\HasNoChildren) "/" "[Gmail]/Alle Nachrichten"\r\n'
    b'* 3 FETCH (X-GM-THRID 1764432 X-GM-MSGID 17644 X-GM-LABELS ("\\\\Important" "\\\\Inbox" '
    b'{6}\r\na "b"c Muster) UID 12 RFC822.SIZE 300 INTERNALDATE "17-Jul-2026 02:44:25 +0000" '
    b'FLAGS ($NotPhishing \\Seen) BODYSTRUCTURE ("MESSAGE" "RFC822" ("NAME" "x.eml") NIL NIL '
    b'"7BIT" 90 NIL ("ATTACHMENT" ("FILENAME" "x.eml")) NIL))\r\n'
    b"* SEARCH 12 13\r\n"
    b"A4 OK UID SEARCH completed (Success)\r\n"
    b"A5 NO [OVERQUOTA] Account exceeded bandwidth limits. (Failure)\r\n"
    b"* BYE Session expired, please login again.\r\n"
)

EXCHANGE = (
    b"* OK The Microsoft Exchange IMAP4 service is ready. [TQBOADIAUABSADAANQ==]\r\n"
    b'* LIST (\\Marked \\HasNoChildren \\Drafts) "/" Drafts\r\n'
    b'* LIST (\\HasNoChildren) "/" {10}\r\nA "B" {3}\\ \r\n'
    b"* SEARCH \r\n"
    b'* 1 FETCH (FLAGS (\\Seen) INTERNALDATE " 1-Feb-2026 10:00:00 +0100" UID 44 '
    b'BODYSTRUCTURE ("TEXT" "PLAIN" ("CHARSET" "us-ascii") NIL NIL "7BIT" 0 0 NIL NIL NIL NIL))\r\n'
    b"A9 BAD Command Error. 12\r\n"
    b"A10 NO [TRYCREATE] The requested folder does not exist. {5}\r\n"
    b"A11 OK FETCH completed.\r\n"
)

CYRUS = (
    b"* OK [CAPABILITY IMAP4rev1 LITERAL+ ID ENABLE AUTH=PLAIN SASL-IR] host Cyrus IMAP ready\r\n"
    b'* LIST (\\HasChildren) "." "INBOX"\r\n* LSUB () "." "INBOX.Sent"\r\n'
    b"* 5 FETCH (FLAGS (\\Recent $MDNSent) UID 5 MODSEQ (62) "
    b'BINARY[1]<0> ~{5}\r\na\0b\r\n BODY[1.MIME] "" ENVELOPE (NIL {4}\r\n\xfc"\\( '
    b'(("A \\"B\\"" NIL "a" "b.example")) NIL NIL NIL NIL NIL NIL "<x@y>"))\r\n'
    b"* 4 EXPUNGE\r\n"
    b"* NO [ALERT] Mailbox is at 95% of quota\r\n"
    b"+ go ahead\r\n"
    b"A2 OK [APPENDUID 1355294409 6] Completed\r\n"
)

COURIER = (
    b"* OK [CAPABILITY IMAP4rev1 UIDPLUS CHILDREN NAMESPACE THREAD=REFERENCES SORT IDLE] Courier "
    b"ready. See COPYING for distribution information.\r\n"
    b'* LIST (\\Unmarked \\HasChildren) "." "INBOX"\r\n'
    b'* NAMESPACE (("INBOX." ".")) NIL (("#shared." ".")("shared." "."))\r\n'
    b"* OK [PERMANENTFLAGS (\\* \\Draft \\Answered)] Limited\r\n"
    b'* 1 FETCH (BODYSTRUCTURE (() "mixed" ("boundary" "") NIL NIL))\r\n'
    b"* 2 FETCH (UID 2 FLAGS ())\r\n\r\n"
    b'* STATUS "INBOX.Gr\xc3\xbc\xc3\x9fe" (MESSAGES 1)\n'
    b"A1 OK\r\n"
)

HOSTILE = (
    b'* LIST () "/" {24}\r\nINBOX\r\nA1 DELETE INBOX\r\n\r\n'
    b"* 1 FETCH (UID 1 BODYSTRUCTURE " + b"(" * 10_000 + b"\r\n"
    b"* OK [REFERRAL imaps://evil.example/] x\r\n"
    b"A999 OK nobody asked\r\n"
    b'* 1 FETCH (UID 1 BODY[TEXT] "a\\"\r\n'
    b"* FETCH (UID 99999999999999999999 FLAGS ())\r\n"
)

TRANSCRIPTS = {
    "dovecot": DOVECOT,
    "gmail": GMAIL,
    "exchange": EXCHANGE,
    "cyrus": CYRUS,
    "courier": COURIER,
    "hostile": HOSTILE,
}
