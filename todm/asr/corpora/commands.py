"""The built-in grammar: commands for a voice-controlled home."""

from todm.asr.corpora import grammar

TEXT = """
room = (kitchen|bedroom|bathroom|office|garage|garden)
digit = (one|two|three|four|five|six|seven|eight|nine)
tens = (ten|twenty|thirty|forty|fifty)
number = (<digit>|<tens>|<tens> <digit>)
machine = (light|fan|heater|radio|camera)
opening = (door|window|gate)
day = (today|tomorrow|sunday)
time = (morning|evening)
colour = (red|green|blue|white)
tune = (jazz|rock|piano)
unit = (seconds|minutes|hours)

[turn] <room> <machine> (on|off)
<room> <machine> (on|off) and <room> <machine> (on|off)
<room> <machine> (on|off) for <number> <unit>
<room> <machine> (on|off) <day> at <number>
<room> <machine> <colour>
<room> <machine> <number> percent
[make] <room> (warmer|colder)
<room> temperature <number> degrees
(timer|alarm) <number> <unit>
<room> timer <number> <unit> and <number> seconds
stop (timer|alarm|music|<room> <machine>)
alarm [<day>] <time> <number>
alarm [<day>] at <number>
play <tune> [music]
play <tune> in <room> [for <number> <unit>]
play (next|last) song
(next|last) song please
volume (up|down) [<number>]
volume <number> percent
(open|close|lock) <room> <opening>
(open|close|lock) <room> <opening> and <room> <opening>
weather <day> [<time>]
call (mother|doctor) [<day>] [<time>] [at <number>]
show <room> (camera|temperature|weather)
<number> <unit> please
"""


def commands() -> grammar.Grammar:
    """The built-in grammar."""
    return grammar.parse(TEXT, where="the built-in grammar")
