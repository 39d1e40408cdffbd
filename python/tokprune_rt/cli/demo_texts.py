"""The texts of `tokprune demo`: a short name for the tables, and the text."""

from __future__ import annotations

TEXTS: tuple[tuple[str, str], ...] = (
    ("trains", "The last train to the coast leaves at half past nine in the evening."),
    ("bus", "After nine thirty at night there is no way to reach the seaside by rail."),
    ("recipe", "Let the bread dough rest in a warm place until it has doubled in size."),
    ("yeast", "Yeast needs warmth and time before a loaf is ready for the oven."),
    ("rates", "The central bank raised interest rates by half a percentage point on Thursday."),
    ("loans", "Mortgages will become more expensive now that borrowing costs have gone up."),
    ("goal", "A goal in the final minute sent the visitors through to the semi-final."),
    ("contract", "Either party may end this agreement in writing with three months' notice."),
    (
        "railway (long)",
        "When the branch line along the estuary was closed in the winter of 1964, the villages on "
        "its northern shore lost more than a way to the market. The morning train had carried the "
        "post, the schoolchildren and the fish of the night, and in the evening it brought back "
        "the people who worked in the shipyard across the water. A bus was promised and for two "
        "years it ran, but the road climbs over three hills and floods in every spring tide, and "
        "the journey that had taken twenty minutes by rail took more than an hour. The hotel at "
        "the terminus, built for summer visitors by the railway company itself, was sold and "
        "became a warehouse. Today walkers follow the old track bed, and a group of volunteers "
        "has laid two miles of rail again, on which a small diesel engine pulls a single coach on "
        "Sundays. They hope to reach the junction within ten years, and for the first time since "
        "the closure the county has set money aside to study a regular service to the coast.",
    ),
    (
        "baking (long)",
        "A sourdough starter is nothing more than flour and water in which wild yeasts and lactic "
        "acid bacteria have found a balance. To begin one, mix equal weights of both in a clean "
        "jar, cover it loosely and leave it at room temperature. On the second day there may be a "
        "burst of bubbles and an unpleasant smell; this is the work of other microbes and soon "
        "passes. Throw away half of the mixture every day and replace it with fresh flour and "
        "water. After a week the starter should rise to twice its height within a few hours of "
        "being fed and smell pleasantly sour. For a loaf, mix a spoonful of it with flour, water "
        "and salt in the evening, fold the dough a few times, and let it rise slowly overnight in "
        "a cool kitchen. In the morning shape it, let it rest in a basket, and bake it in a pot "
        "with a lid in a very hot oven, so that steam keeps the crust soft while the bread is "
        "still growing. Take off the lid for the last twenty minutes, and wait until it is cold "
        "before you cut it.",
    ),
    (
        "economy (long)",
        "Prices rose faster last year than at any time since the oil crisis, and the central bank "
        "answered as the textbooks say it should: it made money more expensive. Higher interest "
        "rates work slowly and not for everyone alike. A family that signed a mortgage with a "
        "fixed rate ten years ago notices nothing until it has to sign the next one, while a "
        "small company that lives on an overdraft pays more within a month. Banks lend less and "
        "choose their customers more carefully, builders postpone new projects, and in the end "
        "fewer people look for workers. That is the intention, because wages which stop rising "
        "take the pressure off prices, but the moment at which it is enough can only be seen "
        "afterwards. Critics point out that much of the inflation came from abroad, from gas and "
        "grain, and that no rate set at home brings a ship through a blocked canal. The governor "
        "replied on Thursday that expectations matter as much as causes: if everyone believes "
        "that prices will go on rising, they will.",
    ),
    (
        "lease (long)",
        "The tenant shall pay the rent in advance on the first working day of every month and "
        "shall keep the premises in good repair, fair wear and tear excepted. The landlord shall "
        "insure the building against fire, storm and flood and shall, on request, show the tenant "
        "the policy and the receipt for the last premium. Neither party may assign the lease "
        "without the written consent of the other, which shall not be refused without good "
        "reason. Should the tenant fail to pay for more than thirty days after a written "
        "reminder, the landlord may end the agreement at once; in every other case it may be "
        "ended by either party in writing with a notice of three months to the end of a quarter. "
        "When the lease ends the tenant shall remove all fittings added during the term, make "
        "good any damage caused by their removal, and return all keys. The deposit, together with "
        "the interest that it has earned, shall be repaid within six weeks, less the cost of any "
        "repair that remains the duty of the tenant under this agreement.",
    ),
)
