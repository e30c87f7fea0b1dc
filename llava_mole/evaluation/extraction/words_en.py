"""English, and the little Spanish that Portuguese and English prompts draw from some models."""

from llava_mole.evaluation.extraction.words import Words

ENGLISH = Words(
    answer=(
        "most convincing|most reasonable|most fitting|most sense|makes more sense|"
        "makes the most sense|more sense|more reasonable|more fitting|better fit|best fit|"
        "more convincing|better supported|more plausible|answer*|correct|correctly|"
        "right choice|right option|right one|right answer|true|best|choose|chose|chosen|pick|"
        "picked|picking|select|selected|selecting|go with|going with|went with|go for|"
        "going for|opt for|opting for|settle on|settled on|vote for|choice|must be|should be|"
        "has to be|remains|remaining|leaves|leaving|leaves us with|conclusion|matches|match|"
        "fits|corresponds to|solution|conclude|concluded|response|prediction|actually|"
        "more likely|most likely|is right|seems right|looks right|is accurate|my guess|"
        "verdict|respuesta|correcta|elijo|✅|✔|☑|✓"
    ),
    option=(
        "option*|choice*|letter|answer|alternative|selection|statement|candidate|opcion|"
        "letra|respuesta|alternativa"
    ),
    before=(
        "balance|overall|considered|together|summary|conclusion|fact|honestly|eventually|"
        "finally|ultimately|now|case|however|yet|end|call it|option|is|are|was|be|being|it's|"
        "it|its|it'd|that's|that is|this is|isn't|not|isnt|wasn't|and|or|nor|but|than|"
        "between|with|as|for|choose|chose|pick|picked|select|selected|say|said|saying|think|"
        "believe|guess|guessing|definitely|certainly|clearly|surely|obviously|probably|"
        "perhaps|maybe|likely|possibly|only|just|simply|either|neither|both|so|therefore|"
        "thus|hence|then|wait|no|yes|actually|instead of|rather|excluding|exclude|eliminate|"
        "eliminates|eliminated|reject|rejected|rule out|rules out|ruled out|discard|leave|"
        "leaves|leaving|remains|except|unlike|while|although|though|since|because|if|would|"
        "sure|still|against|over|versus|vs|matches|fits|on|to|answers|answered|answer|"
        "correct|right|best|final|ok|okay|hmm|um|well|es|la|conclude|equals|like|consider|"
        "supports|support|suggests|suggest|indicates|indicate|from|of|mean|meant|get|gives|"
        "prefer|up|points|by elimination|also|even|out|assistant|response|choice is"
    ),
    after=(
        "makes|make|stands|wins|better|more|most|goes|by|comes|is|isn't|isnt|was|wasn't|are|"
        "and|or|nor|but|because|since|as|seems|seem|looks|look|appears|shows|show|says|say|"
        "would|could|can|cannot|can't|might|may|must|should|does|doesn't|do|don't|matches|"
        "match|fits|fit|describes|over|instead|rather|for|due|given|which|that|so|then|here|"
        "based|being|too|also|not|either|though|although|correct|incorrect|wrong|right|out|"
        "only|both|if|while|it|i|my|the|from|when|where|without|states|mentions|claims|"
        "suggests|implies|contradicts|refers|best|definitely|probably|obviously|clearly|will|"
        "remains|has|please|thanks|with|final|answer|option"
    ),
    negation=(
        "than|not|isn't|isnt|aren't|wasn't|don't|doesn't|dont|didn't|can't|cannot|couldn't|"
        "won't|wouldn't|shouldn't|neither|nor|never|no|none|rather than|instead of|except|"
        "excluding|exclude*|eliminat*|reject*|rule* out|discard*|without|unlike|against|over|"
        "versus|incorrect|wrong|false|there's no|free of|lacks|absence of|other than|❌|✗|✘|✖|"
        "hardly|scarcely|barely|nothing like|almost said|almost chose|far from"
    ),
    rejection=(
        "less likely|less plausible|less convincing|less probable|least likely|less suitable|"
        "less fitting|not|isn't|isnt|aren't|wasn't|don't|doesn't|doesnt|didn't|can't|cannot|"
        "couldn't|won't|wouldn't|wrong|incorrect|false|out|eliminated|excluded|inaccurate|"
        "impossible|unlikely|irrelevant|rejected|discarded|contradicts|contradicted|no|fails|"
        "neither|too small|too big|❌|✗|✘|✖|worse|weaker|less|inferior"
    ),
    but="but|however|yet|nevertheless|nonetheless|rather",
    because=(
        "because|since|as|due to|given that|for the reason|explanation|reason|reasoning|where|when"
    ),
    also=(
        "and|or|nor|and maybe|and perhaps|or maybe|or perhaps|or possibly|and/or|and also|"
        "and possibly|as well as|maybe|y|o"
    ),
    therefore=(
        "all things considered|on balance|taken together|all in all|by elimination|therefore|"
        "thus|hence|so|final|finally|in conclusion|conclusion|consequently|overall|"
        "in summary|to sum up|accordingly|as a result|which means|this means|conclude|"
        "ultimately|in short|por lo tanto|entonces"
    ),
    correction=(
        "no wait|wait no|wait|correction|scratch that|on second thought|on second thoughts|"
        "let me correct|let me reconsider|i made a mistake|my mistake|i mean|oops|"
        "strike that|sorry, it|no, it's|no, it is|i take that back|rather, it"
    ),
    aside=(
        "while|although|though|even though|at first|initially|first thought|at first glance|"
        "originally|might think|may think|could think|tempting|i thought|one might|"
        "some might|despite|even if|unlike|similar to|confused with|mistaken for|"
        "as opposed to|compared to|compared with|before looking|said earlier|previously said|"
        "had said|i just said|said before|earlier i said|i first said|i wrote earlier|"
        "had written|had answered|previously answered|many people|some people|most people|"
        "previous question|another question|different question|last question|trap|distractor|"
        "almost said"
    ),
    condition=(
        "if|unless|depending on|depends on|whether|in case|suppose|assuming|were to|"
        "provided that|had it|had there|were it|were there"
    ),
    discussion=(
        "says|say|states|describes|mentions|claims|suggests|implies|refers|shows|show|"
        "is about|would mean|would be|would imply|means|talks about|depicts|represents|"
        "suggesting|could mean|requires|would require|would need|needs"
    ),
    refusal=(
        "anything but|all but|everything but|all except|everything except|can't see|"
        "cannot see|can not see|unable to|can't view|cannot view|not able to|can't determine|"
        "cannot determine|could not determine|can't tell|cannot tell|can't answer|"
        "cannot answer|can't decide|cannot decide|could not decide|couldn't decide|"
        "can't identify|cannot identify|cannot be determined|can't be determined|"
        "can't choose|cannot choose|can't provide|cannot provide|can't assist|cannot assist|"
        "can't help|cannot help|can't say|cannot say|don't know|do not know|no idea|"
        "not possible to|impossible to|no image|no picture|no photo|not provided|"
        "wasn't provided|was not provided|not attached|please upload|please provide|"
        "please attach|please share|please describe|please send|please tell me|upload the|"
        "could you please|hard to say|hard to tell|difficult to say|difficult to tell|"
        "difficult to determine|hard to determine|not enough information|"
        "insufficient information|unclear|as an ai|text-based|don't have the ability|"
        "do not have the ability|don't have access|undecided|torn between|not clear|"
        "don't see an image|don't see any image|do not see an image|unsure|"
        "can't really decide|really can't decide|not sure which|isn't enough|depends on|"
        "yes and no|yes or no|either could|could be either|equally likely|both are possible|"
        "both are correct|could not see|haven't provided|have not provided|didn't provide|"
        "image is missing|image did not|image didn't|failed to load|not comfortable|"
        "won't be able|commit to either|not want to commit|rather not|would not commit|"
        "won't commit|not commit to|either of them|prefer not to|not willing to|not ready to"
    ),
    perhaps=(
        "could also|might also|may also|could be|might be|possibly|maybe|perhaps|"
        "also possible|is possible|is also"
    ),
    likewise=(
        "so is|so are|so too|neither is|nor is|same for|same with|same goes for|likewise|"
        "as is|as well as|similarly"
    ),
    instead="instead of|rather than|compared to|compared with|unlike|as opposed to",
    total=(
        "in total|altogether|in all|total of|total|all together|adds up to|add up to|making|"
        "the sum is|sum of"
    ),
    extreme=(
        "smallest|largest|biggest|highest|lowest|tallest|shortest|longest|least|greatest|"
        "fewest|oldest|youngest|fastest|slowest|heaviest|lightest|nearest|closest|farthest|"
        "most popular|most common|most expensive|cheapest|maximum|minimum"
    ),
    shown=(
        "highlighted|marked in|shaded|colored in|coloured in|pictured is|depicted is|circled|"
        "labelled region"
    ),
    that_is="that is|i.e|that is to say|namely|which is|making it|so that is|meaning",
    any="any|a single|no one|anyone|anybody|anything",
    picture="image*|picture*|photo*|attachment*|file|one|screenshot|option*",
    statement="statement|claim|sentence|assertion|caption|description|proposition",
    is_true="true|correct|accurate|right|valid",
    is_false="false|incorrect|wrong|inaccurate|untrue|not true|not correct|not accurate",
    harmless=(
        "nothing other than|no other than|more than likely|nothing less than|no doubt|"
        "without a doubt|without doubt|without any doubt|no question|not only|not just|"
        "not sure but|not certain but|doubtless|nothing but|none other than|"
        "can't be anything but|cannot be anything but|why not|not 100%|no problem|"
        "can't help but|not entirely sure|not completely sure|not totally sure|"
        "nothing remains but|nothing is left but|no option is left but|no option remains but|"
        "no option but|no choice but|leaves nothing but|none is left but|none remains but|"
        "none but|almost certainly|almost surely|almost definitely|out of a total of|out of|"
        "more or less|nothing less"
    ),
    none=(
        "none of the above|none of these|none of the options|none of them|"
        "none of the given options|none of the choices|none of the listed|"
        "none of the provided options|neither of them|no option|no correct option|"
        "none are correct|none is correct|not listed|neither of these|none of the answers"
    ),
    every=(
        "all of the above|all of these|all of them|all the above|all options|"
        "all of the options|all choices|all are correct|both of them|both options|"
        "both of these|both of the above|all three|all four|both are"
    ),
    yes="yes|yeah|yep|yup|true|affirmative|correct|sure is|si",
    no="no|nope|false|negative|nah|incorrect",
    article="a|an|the|some|its|his|her|their|this|that|one",
    preposition="in|on|at|with|by|of|to|from|into|for",
    ordinals=(
        "first/1st|second/2nd|third/3rd|fourth/4th|fifth/5th|sixth/6th|seventh/7th|eighth/"
        "8th|ninth/9th|last"
    ),
    numbers=(
        "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|"
        "fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty"
    ),
    tens=("thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand||||||||"),
)
