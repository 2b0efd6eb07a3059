"""The built-in grammar: commands to a voice-controlled home."""

from todm.asr.corpora import grammar

TEXT = """
room = (kitchen|bedroom|bathroom|office|garage|garden|hallway)
place = (<room>|upstairs|downstairs)
digit = (one|two|three|four|five|six|seven|eight|nine)
teen = (ten|eleven|twelve|fifteen)
tens = (twenty|thirty|forty|fifty)
few = (<digit>|<teen>|<tens>)
number = (<few>|<tens> <digit>)
hour = (<digit>|ten|eleven|twelve)
minute = (ten|fifteen|<tens>)
clock = <hour> [<minute>]
colour = (red|green|blue|white)
lamp = (light|lights|lamp)
machine = (<lamp>|fan|heater|radio|television|camera)
opening = (door|window|gate|blinds)
daytime = (morning|evening)
day = (today|tomorrow|monday|sunday)
tune = (jazz|rock|piano)
sound = (music|song|radio|television)
person = (mother|anna|the doctor)

(turn|switch) (on|off) the <place> <machine>
(turn|switch) the <place> <machine> (on|off)
turn (on|off) the <room> <machine> and <machine>
[please] switch (on|off) all <place> lights
<place> <lamp> <colour> at <number> percent
make the <place> <lamp> <colour> [again]
dim the <place> lights to <few> percent
set the <place> (fan|heater|volume) to <number>
set the <place> temperature to <number> degrees
make (it|the <place>) [<few> degrees] (warmer|colder)
make it <number> degrees (warmer|colder)
set a timer for <number> (seconds|minutes|hours)
(stop|start) the <machine> in <number> minutes
cancel (the|my|all) <number> minute (timer|alarm)
add <number> (seconds|minutes|hours) [to my timer]
wake me [<day>] at <clock>
wake me <day> <daytime> at <clock>
set (an|my) alarm for <clock> [<day>]
set (an|my) alarm <day> <daytime> at <hour>
play [some] <tune> [music] [in the <place>]
play [some] <tune> for <few> (minutes|hours)
play the (next|last) <few> [<tune>] songs
play the (next|last) <tune> song [in the <place>]
(pause|stop) the <place> <sound> [again]
pause [the] <sound> for <number> (seconds|minutes)
skip [the] (next|last) <few> songs
skip <number> (songs|minutes|seconds)
turn the <place> <sound> (up|down) [please]
volume (up|down) by <number> [percent]
(open|close|lock|unlock) the <room> <opening> [again]
(open|close) the <room> <opening> and <opening>
(lock|unlock) the <room> <opening> (and <opening>|<day>)
is the <room> <opening> (open|closed) [<day>]
close [all] the <room> <opening> <day>
is the <place> <machine> (on|off)
call <person> [<day>] at <clock>
call <person> <day> <daytime> [at <hour>]
what is the weather <day> [at <hour>]
what is the [<place>] (temperature|volume|weather) [<day>]
weather [for] <day> (<daytime>|at <hour>)
show [me] the <room> (camera|weather|temperature|<opening>) [again|please]
"""


def commands() -> grammar.Grammar:
    """The built-in grammar."""
    return grammar.parse(TEXT, where="the built-in grammar")
